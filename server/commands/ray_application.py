"""`graft serve --ray` as an application that a cluster starts by itself: for `serve deploy`, and KubeRay's RayService.

Its import path is `graft.server.commands.ray_application:application`, its one argument `options`: words of `graft serve`, such as
"--base /models/base --hub http://hub:8080 --keys /etc/graft/keys.toml --host 0.0.0.0 --replicas 4". The ingress is on the head's
machine, whose port is to be given to clients.
"""

import secrets
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING

from graft.server.commands.admission import Admission
from graft.server.commands.on_ray import RayOptions, Serving, anywhere, make_application
from graft.server.commands.serve import parse_folder, serve
from graft.server.commands.start import open_shelf

if TYPE_CHECKING:
    from ray.serve import Application


def application(given: Mapping[str, str]) -> "Application":
    """Raises UsageError for options that there are not or that don't go together, GraftError for what can't be used."""
    from graft.server.scale.application import HEAD

    with serve.make_context(
        "graft serve", [*shlex.split(given["options"]), "--ray", "--ray-address", "auto"]
    ) as context:
        told = context.params
        ray_options = RayOptions.of(context)
        ray_options.require_sound(on_ray=True, adapter_root=told["adapter_root"], port=told["port"])
        admission = Admission(told["keys"], told["registry_path"], told["hub_url"], told["open_metrics"])
        admission.require_sound(
            open_shelf(told["registry_path"], told["hub_url"]), told["host"], is_open=told["is_open"]
        )
        local = dict(map(parse_folder, told["adapters"]))
        serving = Serving(told["host"], told["port"], admission, local, told["usage_path"], told["trusted_proxies"])
        return make_application(context, ray_options, anywhere(serving), HEAD, secrets.token_urlsafe(8))
