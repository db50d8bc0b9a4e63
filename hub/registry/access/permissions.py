"""May WHO do WHAT to WHICH: the one table of what is done here and who may, and the one function that asks it.

WHO is a Caller, WHAT an Action, WHICH the names whose owner may: a repo's "ns/name", a namespace, a task's owners. Knows
no HTTP and no tables, so pages, protocols, commands and servers ask alike. Which private repos are seen at all stands
in visibility.py: to everybody else they are absent, and nobody gets as far as here.

Admins have no way into other people's names: they manage tasks and bases. Whoever holds the file `registry.db` (a command
on this machine, or a hub with no users yet that listens on loopback) is its owner and may everything; users, quotas and
withdrawals are managed so alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from graft.hub.errors import ForbiddenError, GraftError, UnauthorizedError
from graft.hub.registry.access.callers import Caller


class Right(StrEnum):
    """What a token's scope gives."""

    READ = "read"
    WRITE = "write"
    EVALUATE = "evaluate"
    ADMIN = "admin"


# A token's scope -> what it gives. The first that gives a right is the one to ask for.
SCOPES: Mapping[str, frozenset[Right]] = MappingProxyType(
    {
        "read": frozenset((Right.READ,)),
        "write": frozenset((Right.READ, Right.WRITE)),
        "evaluator": frozenset((Right.READ, Right.EVALUATE)),
        "admin": frozenset(Right),
    }
)


class Action(StrEnum):
    """WHAT is done."""

    HUB_READ = "hub.read"  # what is public of the hub: lists, tasks, bases, signing in
    LINK_USE = "link.use"  # a signed link is a permission of its own
    SELF_READ = "self.read"  # who am I
    MODEL_ASK = "model.ask"  # an answer of the inference server
    MODEL_MANAGE = "model.manage"  # which adapters the inference server has in memory, and by which names
    REPO_READ = "repo.read"
    REPO_CREATE = "repo.create"
    REPO_WRITE = "repo.write"  # commits, uploads, refs, aliases, settings
    REPO_DELETE = "repo.delete"
    REPO_MOVE = "repo.move"
    ADAPTER_CHECK = "adapter.check"  # what publishing would find; nothing is committed
    SCORE_CLAIM = "score.claim"  # a score of one's own adapter, kept as self-reported
    SCORE_MEASURE = "score.measure"  # a score that counts as measured by graft, of whatever the caller sees
    TASK_CHANGE = "task.change"  # its metric, data and owners
    TASK_PROMOTE = "task.promote"  # what `task:T` serves
    BASE_RECORD = "base.record"  # a base's manifest, for everybody
    BASE_CLAIM = "base.claim"  # a base's manifest, for one's own commits


@dataclass(frozen=True)
class Rule:
    """Who may. `right`: what their scope has to give; None: nobody need sign in.

    `owned`: one of WHICH has to be theirs; `or_admin`: if it isn't, an admin may all the same.
    """

    right: Right | None = None
    owned: bool = False
    or_admin: bool = False


_ANYBODY = Rule()
_OWNER = Rule(Right.WRITE, owned=True)
_ADMIN = Rule(Right.ADMIN)

RULES: Mapping[Action, Rule] = MappingProxyType(
    {
        Action.HUB_READ: _ANYBODY,
        Action.LINK_USE: _ANYBODY,
        Action.SELF_READ: Rule(Right.READ),
        Action.MODEL_ASK: Rule(Right.READ),
        Action.MODEL_MANAGE: _ADMIN,
        Action.REPO_READ: _ANYBODY,
        Action.REPO_CREATE: _OWNER,
        Action.REPO_WRITE: _OWNER,
        Action.REPO_DELETE: _OWNER,
        Action.REPO_MOVE: _OWNER,
        Action.ADAPTER_CHECK: Rule(Right.WRITE),
        Action.SCORE_CLAIM: _OWNER,
        Action.SCORE_MEASURE: Rule(Right.EVALUATE),
        Action.TASK_CHANGE: _ADMIN,
        Action.TASK_PROMOTE: Rule(Right.WRITE, owned=True, or_admin=True),
        Action.BASE_RECORD: _ADMIN,
        Action.BASE_CLAIM: Rule(Right.WRITE),
    }
)


def may(caller: Caller, action: Action, *which: str) -> bool:
    return _refusal(caller, action, which) is None


def require(caller: Caller, action: Action, *which: str) -> None:
    """Raises UnauthorizedError for a stranger who would have to sign in, ForbiddenError for who may not."""
    if refusal := _refusal(caller, action, which):
        raise refusal


def require_right(caller: Caller, *actions: Action) -> None:
    """As `require`, of what can be said before it is known what is acted on: that one of the actions is in the scope."""
    refusals = [_lacking_right(caller, RULES[action]) for action in actions]
    if all(refusals) and (refusal := refusals[-1]):
        raise refusal


def _refusal(caller: Caller, action: Action, which: tuple[str, ...]) -> GraftError | None:
    rule = RULES[action]
    if refusal := _lacking_right(caller, rule):
        return refusal
    if not rule.owned or any(caller.reaches(name) for name in which):
        return None
    if rule.or_admin and _gives(caller.scope, Right.ADMIN):
        return None
    names = " or ".join(repr(name) for name in which)
    return ForbiddenError(
        f"{caller.name} may not write under {names}: publish under {', '.join(caller.own_names) or 'nothing'}."
    )


def _lacking_right(caller: Caller, rule: Rule) -> GraftError | None:
    if rule.right is None or _gives(caller.scope, rule.right):
        return None
    if caller.scope is None:
        return UnauthorizedError("Sign in first: this needs a token (`hf auth login`, or the sign-in page).")
    needed = next(scope for scope, rights in SCOPES.items() if rule.right in rights)
    return ForbiddenError(f"This token's scope is {caller.scope!r} and this needs {needed!r}: ask for another token.")


def _gives(scope: str | None, right: Right) -> bool:
    return scope is not None and right in SCOPES[scope]
