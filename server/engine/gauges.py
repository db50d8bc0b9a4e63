"""What Prometheus reads of an engine at any moment: name -> (help, how to read it)."""

from collections.abc import Callable

from graft.server.adapters.device import DeviceTier
from graft.server.adapters.host import HostTier
from graft.server.cache.blocks import BlockPool
from graft.server.engine.scheduler import Scheduler


def gauges(
    blocks: BlockPool, scheduler: Scheduler, loader: HostTier, residency: DeviceTier
) -> dict[str, tuple[str, Callable[[], float]]]:
    return {
        "graft_requests_running": ("Requests in the present step", lambda: scheduler.running),
        "graft_requests_waiting": ("Requests not admitted yet", lambda: scheduler.waiting),
        "graft_preemptions": ("Requests that gave up their blocks", lambda: scheduler.preemptions),
        "graft_cache_blocks_used": ("KV cache blocks in use", lambda: blocks.used),
        "graft_cache_blocks": ("KV cache blocks", lambda: blocks.count - 1),
        "graft_prefix_blocks_found": ("Prompt blocks found in the cache", lambda: blocks.hits),
        "graft_prefix_blocks_computed": ("Shareable prompt blocks computed", lambda: blocks.misses),
        "graft_adapter_host_bytes": ("Adapters in host memory", lambda: loader.bytes),
        "graft_adapter_device_bytes": ("Adapters on the device", lambda: residency.bytes),
        "graft_adapter_hits": ("Requests whose adapter was in host memory", lambda: loader.stats.hits),
        "graft_adapter_misses": ("Requests that began a load", lambda: loader.stats.misses),
        "graft_adapter_load_failures": ("Loads that failed", lambda: loader.stats.failures),
        "graft_adapter_evictions": ("Adapters dropped from the device", lambda: residency.evictions),
    }
