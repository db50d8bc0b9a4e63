"""Who asks, as an ingress in front of several engines has found out: it asks for keys, its engines believe it.

Two headers, which are taken from nobody but who shows the secret that the ingress and its engines were started with.
"""

import base64
import hmac
import json
from dataclasses import asdict, dataclass

from graft.server.errors import InvalidKeyError
from graft.server.http.access.shown_key import Headers
from graft.server.keys.holders import EVERYTHING, UNLIMITED, Holder, Limits, Profile

SECRET = "X-Graft-Secret"
INTRODUCTION = "X-Graft-Introduction"


@dataclass(frozen=True)
class Introduction:
    """Of one request. `client`: who is served in turn, by `weight`; `key`: the name of the key that was shown, "" for none.

    `asked`: what the client calls the model, where the body has the version that this stands for; "" where they are the same.
    `accounts`: where to tell the begin and end of the request, whose key has `limits`; "" where nobody counts them. `adapters`
    and `base`: what the key is for, as far as the ingress has not seen to that.
    """

    client: str
    key: str = ""
    weight: float = 1.0
    admin: bool = False
    adapters: tuple[str, ...] = (EVERYTHING,)
    base: bool = True
    asked: str = ""
    accounts: str = ""
    limits: Limits = UNLIMITED

    @property
    def holder(self) -> Holder:
        return Holder(self.key, Profile(self.adapters, self.base, self.limits, self.weight), self.admin)

    def headers(self, secret: str) -> dict[str, str]:
        """How it is told: names may hold letters that headers can't."""
        return {SECRET: secret, INTRODUCTION: base64.b64encode(json.dumps(asdict(self)).encode()).decode()}


def read_introduction(headers: Headers, secret: str) -> Introduction:
    """Raises InvalidKeyError for whoever does not show the secret."""
    if not hmac.compare_digest(headers.get(SECRET, "").encode(), secret.encode()):
        raise InvalidKeyError("This engine answers its ingress alone: ask that one.")
    told = json.loads(base64.b64decode(headers.get(INTRODUCTION, "")))
    return Introduction(**told | {"adapters": tuple(told["adapters"]), "limits": Limits(**told["limits"])})
