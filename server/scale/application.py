"""The application that Ray Serve runs: one ingress in front of replicas, how many, and when one counts as broken."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graft.server.scale.engine_process import EngineCommand
from graft.server.scale.ingress import IngressOptions
from graft.server.scale.replica import Needs

if TYPE_CHECKING:
    from ray.serve import Application

NAME = "graft"
REPORT_S = 1.0  # how often replicas say what they hold
LOOK_S = 1.0  # how often Serve looks after them
SILENT_S = 30.0  # after which one that does not answer is replaced: an engine under load answers late
MARGIN_S = 10.0  # beyond an engine's drain, before Serve kills its actor
ROUTER = "graft.server.scale.router:DigestRouter"


@dataclass(frozen=True)
class Replicas:
    """How many there are: from `least` to `most`, by how many requests are under way. `cpus` and `gpus`: what Ray sets aside for
    each. `busy`: requests that one should have."""

    least: int
    most: int
    busy: float
    cpus: float = 0.0
    gpus: float = 0.0

    def options(self) -> dict[str, Any]:
        """Of a deployment."""
        if self.least == self.most:
            return {"num_replicas": self.least}
        scaling = {
            "min_replicas": self.least,
            "max_replicas": self.most,
            "target_ongoing_requests": self.busy,
            "policy": {"policy_function": "graft.server.scale.scaling:replicas_wanted"},
        }
        return {"autoscaling_config": scaling}


def make_application(
    command: EngineCommand,
    needs: Needs,
    ingress: IngressOptions,
    replicas: Replicas,
    *,
    ingress_node: str | None = None,
    router: str = ROUTER,
) -> "Application":
    """`ingress_node`: the address of the machine that the ingress must be on; None: any."""
    from ray import serve
    from ray.serve.config import RequestRouterConfig

    from graft.server.scale.ingress import Ingress
    from graft.server.scale.replica import EngineReplica

    common: dict[str, Any] = {
        "health_check_period_s": LOOK_S,
        "health_check_timeout_s": SILENT_S,
        "graceful_shutdown_wait_loop_s": LOOK_S,
        "graceful_shutdown_timeout_s": ingress.drain_s + MARGIN_S,
    }
    engines = serve.deployment(
        EngineReplica,
        name="engine",
        ray_actor_options={"num_cpus": replicas.cpus, "num_gpus": replicas.gpus},
        request_router_config=RequestRouterConfig(
            request_router_class=router,
            request_routing_stats_period_s=REPORT_S,
            request_routing_stats_timeout_s=SILENT_S,
        ),
        max_surge_percent=0 if replicas.gpus else 1,  # a new one before an old one goes, where there is room for both
        **replicas.options(),
        **common,
    ).bind(command, needs, ingress.drain_s)
    resources = {} if ingress_node is None else {f"node:{ingress_node}": 0.001}
    front = serve.deployment(
        Ingress,
        name="ingress",
        num_replicas=1,
        max_surge_percent=100,
        ray_actor_options={"num_cpus": 0, "resources": resources},
        **common,
    )
    return front.bind(ingress, engines)
