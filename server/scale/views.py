"""What an ingress says of its engines: whether each takes requests, what each holds. Ray-free."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import Metric

from graft.server.operations.families import counter, labelled
from graft.server.scale.fleet import Fleet, Seen

JSON = "application/json"
Lists = Mapping[str, Sequence[dict[str, object]]]
"""What replicas list, by their ids."""
Merge = Callable[[Lists], list[dict[str, object]]]
_STATES = ("disk", "host", "device")  # from far to near


def json_answer(value: object, status: int = 200) -> web.Response:
    """As an engine writes JSON, whatever aiohttp's way is."""
    return web.Response(
        body=json.dumps(value, separators=(",", ":")).encode() + b"\n", status=status, content_type=JSON
    )


def readiness(fleet: Fleet, *, keys_outdated: bool) -> web.Response:
    """For /ready: 200 where at least one replica takes requests; what each other one is missing, in words. `keys_outdated`: other
    keys hold than their file has now."""
    serving = {one.id for one in fleet.serving()}
    replicas = {one.id: _standing(fleet, one, serves=one.id in serving) for one in fleet.replicas()}
    outdated = {"keys": "outdated"} if keys_outdated else {}
    body = {"status": "ready" if serving else "not ready", **outdated, "replicas": replicas}
    return json_answer(body, 200 if serving else 503)


def _standing(fleet: Fleet, one: Seen, *, serves: bool) -> dict[str, object]:
    return {
        "serves": serves,
        "missing": fleet.lacks(one),
        "model": one.model,
        "dtype": one.base.dtype,
        "requests": one.under_way,
        "adapters": len(one.resident),
        "bytes": sum(one.resident.values()),
        "room": one.room,
    }


def all_known(lists: Lists) -> list[dict[str, object]]:
    """For /v1/models: each model once, as the replica shows it that has it nearest."""
    found: dict[str, dict[str, object]] = {}
    for entry in chain.from_iterable(lists.values()):
        known = found.setdefault(str(entry["id"]), entry)
        if _nearness(entry) > _nearness(known):
            found[str(entry["id"])] = entry
    return list(found.values())


def merged(lists: Lists) -> list[dict[str, object]]:
    """For /v1/adapters: the same, by name, and where each is on which replica."""
    places: dict[str, dict[str, object]] = {}
    for replica, entries in lists.items():
        for entry in entries:
            there = places.setdefault(str(entry["id"]), {})
            if _nearness(entry):
                there[replica] = {what: entry[what] for what in ("state", "pinned", "proof")}
    known = sorted(all_known(lists), key=lambda entry: str(entry["id"]))
    return [entry | {"replicas": places[str(entry["id"])]} for entry in known]


def _nearness(entry: Mapping[str, object]) -> int:
    """The base is nowhere else."""
    return _STATES.index(str(entry.get("state", _STATES[0])))


def metrics(fleet: Fleet, retries: int) -> web.Response:
    """For Prometheus: of the ingress, and which replica holds what. Each engine has its own numbers."""
    registry = CollectorRegistry()
    registry.register(_Numbers(fleet, retries))
    return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


class _Numbers:
    def __init__(self, fleet: Fleet, retries: int):
        self._fleet = fleet
        self._retries = retries

    def collect(self) -> Iterator[Metric]:
        replicas, mine = self._fleet.replicas(), self._fleet.requests
        serving = {one.id for one in self._fleet.serving()}
        yield counter("graft_ingress_retries", "Requests sent to another replica", (), [((), self._retries)])
        for name, text, value in (
            ("graft_replica_serves", "Whether requests go there", lambda one: float(one.id in serving)),
            ("graft_replica_requests", "Under way from this ingress", lambda one: float(mine.get(one.id, 0))),
            ("graft_replica_requests_reported", "Under way, as it says", lambda one: float(one.under_way)),
            ("graft_replica_adapters", "In its memory", lambda one: float(len(one.resident))),
            ("graft_replica_adapter_bytes", "Of them", lambda one: float(sum(one.resident.values()))),
            ("graft_replica_adapter_room_bytes", "For them", lambda one: float(one.room)),
        ):
            yield labelled(name, text, ("replica",), [((one.id,), value(one)) for one in replicas])
        about = [((one.id, one.url, one.model, one.base.dtype), 1.0) for one in replicas]
        yield labelled("graft_replica_info", "Where it is", ("replica", "url", "model", "dtype"), about)
        resident = [((one.id, digest), float(size)) for one in replicas for digest, size in one.resident.items()]
        yield labelled("graft_replica_resident_bytes", "Of an adapter there", ("replica", "digest"), resident)
