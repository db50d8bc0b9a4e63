"""Whether a base that has to come from a model hub can come: asked once and briefly, for the client would try for half a minute."""

from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub import errors as hf

from graft.hub.errors import BaseModelError

_TIMEOUT_S = 10


def require_fetchable(base_id: str) -> None:
    """Raises BaseModelError where the model hub doesn't answer as one. What it says of the base is the loader's to tell."""
    if constants.HF_HUB_OFFLINE or try_to_load_from_cache(base_id, "config.json"):
        return
    try:
        HfApi().model_info(base_id, timeout=_TIMEOUT_S)
    except hf.HfHubHTTPError as error:
        if error.response.status_code >= 500:
            raise _no_hub(base_id, f"it answered {error.response.status_code}") from None
    except hf.HTTPError as error:
        raise _no_hub(base_id, type(error).__name__) from None
    except ValueError:  # no JSON
        raise _no_hub(base_id, "it sent a page instead") from None


def _no_hub(base_id: str, why: str) -> BaseModelError:
    return BaseModelError(
        f"Can't load the base {base_id}: there is no such folder, so it was taken for a model hub's id, and "
        f"{constants.ENDPOINT} does not answer as a model hub ({why}). Check --base, the network and the proxy on the way."
    )
