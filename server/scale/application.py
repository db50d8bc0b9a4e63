"""The application that Ray Serve runs: one ingress in front of replicas, how many, and when one counts as broken."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from graft.server.scale.engine_process import EngineCommand
from graft.server.scale.ingress import IngressOptions
from graft.server.scale.replica import Needs

if TYPE_CHECKING:
    from ray.serve import Application
    from ray.serve.config import AutoscalingConfig

REPORT_S = 1.0  # how often replicas say what they hold
LOOK_S = 1.0  # how often Serve looks after them
SILENT_S = 30.0  # after which one that does not answer is replaced: an engine under load answers late
MARGIN_S = 10.0  # beyond an engine's drain, before Serve kills its actor
HEAD = "__internal_head__"  # what Ray calls the head's machine
POLICY = "graft.server.scale.scaling:replicas_wanted"
ONE_LOOP = {"RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0"}  # a hop to another thread's loop and back takes milliseconds
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

    @property
    def scaling(self) -> "AutoscalingConfig | None":
        """None: there are always as many."""
        from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

        if self.least == self.most:
            return None
        return AutoscalingConfig(
            min_replicas=self.least,
            max_replicas=self.most,
            target_ongoing_requests=self.busy,
            policy=AutoscalingPolicy(policy_function=POLICY),
        )


def make_application(
    command: EngineCommand,
    needs: Needs,
    ingress: IngressOptions,
    replicas: Replicas,
    *,
    ingress_on: str | None = None,
    router: str = ROUTER,
) -> "Application":
    """`ingress_on`: the address of the machine that the ingress must be on, or HEAD; None: any."""
    from ray import serve
    from ray.serve.config import RequestRouterConfig

    from graft.server.scale.ingress import Ingress
    from graft.server.scale.replica import EngineReplica

    drain_s = ingress.drain_s + MARGIN_S
    engines = serve.deployment(
        EngineReplica,
        name="engine",
        num_replicas=replicas.least if replicas.scaling is None else None,
        autoscaling_config=replicas.scaling,
        max_surge_percent=0 if replicas.gpus else 1,  # a new one before an old one goes, where there is room for both
        ray_actor_options={"num_cpus": replicas.cpus, "num_gpus": replicas.gpus},
        request_router_config=RequestRouterConfig(
            request_router_class=router,
            request_routing_stats_period_s=REPORT_S,
            request_routing_stats_timeout_s=SILENT_S,
        ),
        health_check_period_s=LOOK_S,
        health_check_timeout_s=SILENT_S,
        graceful_shutdown_wait_loop_s=LOOK_S,
        graceful_shutdown_timeout_s=drain_s,
    ).bind(command, needs, ingress.drain_s)
    front = serve.deployment(
        Ingress,
        name="ingress",
        num_replicas=1,
        max_surge_percent=100,
        ray_actor_options={
            "num_cpus": 0,
            "resources": {} if ingress_on is None else {f"node:{ingress_on}": 0.001},
            "runtime_env": {"env_vars": ONE_LOOP},
        },
        user_config={"listens": True},
        health_check_period_s=LOOK_S,
        health_check_timeout_s=SILENT_S,
        graceful_shutdown_wait_loop_s=LOOK_S,
        graceful_shutdown_timeout_s=drain_s,
    )
    return front.bind(ingress, engines)
