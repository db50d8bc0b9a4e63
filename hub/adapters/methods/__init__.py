"""The table of PEFT methods: one file and one line each."""

from graft.hub.adapters.methods import adapterhub_format
from graft.hub.adapters.methods.bitfit import BitFit
from graft.hub.adapters.methods.ia3 import Ia3
from graft.hub.adapters.methods.lora import Lora
from graft.hub.adapters.methods.method import InitContext, Method, MethodConfig, Raw
from graft.hub.adapters.methods.p_tuning import PTuning
from graft.hub.adapters.methods.parallel import Parallel
from graft.hub.adapters.methods.prefix_tuning import Prefix
from graft.hub.adapters.methods.prompt_tuning import Prompt
from graft.hub.adapters.methods.series import Series
from graft.hub.errors import GraftError, UnsupportedMethodError

METHODS: dict[str, Method] = {
    method.name: method for method in (Lora(), Series(), Parallel(), Prompt(), Prefix(), PTuning(), BitFit(), Ia3())
}

__all__ = ["METHODS", "InitContext", "Method", "MethodConfig", "Raw", "get_method", "recognise"]


def get_method(name: str) -> Method:
    """The method called `name`. Raises GraftError listing the known ones."""
    if name not in METHODS:
        raise GraftError(f"Unknown method {name!r}. Known: {', '.join(METHODS)}.")
    return METHODS[name]


def recognise(raw: Raw) -> Method:
    """The method of an adapter_config.json. Raises UnsupportedMethodError saying what it is instead."""
    for method in METHODS.values():
        if method.recognises(raw):
            return method
    kind = raw.get("peft_type") or adapterhub_format.config_of(raw).get("architecture")
    if kind is None:
        raise UnsupportedMethodError(
            "adapter_config.json names no method: neither PEFT's peft_type nor AdapterHub's config is there."
        )
    raise UnsupportedMethodError(f"The method {str(kind)[:80]!r} is not served. Served are {', '.join(METHODS)}.")
