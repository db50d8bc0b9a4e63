"""What Prometheus reads of an engine at any moment: graft's own names, and those that routers look for at vLLM's servers."""

import time
from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric

from graft.server.adapters.device import DeviceTier
from graft.server.adapters.host import HostTier
from graft.server.cache.blocks import BlockPool
from graft.server.cache.step import BLOCK_ROWS
from graft.server.engine.ledger import Ledger
from graft.server.engine.scheduler import Scheduler
from graft.server.operations.families import Read, gauges
from graft.server.operations.throughput import Load
from graft.server.telemetry import Metrics

MOST_LISTED = 100  # adapters that are told of, those on the device first


class EngineGauges:
    """Read on any thread, whatever the engine's own is at. `model`: the base's name, `max_running`: sequences of a step."""

    def __init__(
        self,
        model: str,
        max_running: int,
        blocks: BlockPool,
        scheduler: Scheduler,
        ledger: Ledger,
        loader: HostTier,
        residency: DeviceTier,
    ):
        self._model = model
        self._max_running = max_running
        self._blocks = blocks
        self._scheduler = scheduler
        self._ledger = ledger
        self._loader = loader
        self._residency = residency

    def read(self) -> Iterator[Metric]:
        yield from gauges(self._own())
        yield from self._of_model()
        yield self._requests_of_adapters()
        yield self._adapters_loaded()

    def load(self, metrics: Metrics) -> Load:
        prompt, tokens = metrics.totals()
        return Load(
            prompt,
            tokens,
            self._scheduler.running,
            self._scheduler.waiting,
            self._blocks.used / max(1, self._blocks.count - 1),
            len(self._residency.snapshot()),
        )

    def _own(self) -> Read:
        blocks, scheduler, loader, residency = self._blocks, self._scheduler, self._loader, self._residency
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
            "graft_adapters_on_device": ("Adapters on the device", lambda: len(residency.snapshot())),
            "graft_adapter_hits": ("Requests whose adapter was in host memory", lambda: loader.stats.hits),
            "graft_adapter_misses": ("Requests that began a load", lambda: loader.stats.misses),
            "graft_adapter_load_failures": ("Loads that failed", lambda: loader.stats.failures),
            "graft_adapter_evictions": ("Adapters dropped from the device", lambda: residency.evictions),
        }

    def _of_model(self) -> Iterator[Metric]:
        usage = self._blocks.used / max(1, self._blocks.count - 1)
        for name, text, value in (
            ("vllm:num_requests_running", "Requests in the present step", self._scheduler.running),
            ("vllm:num_requests_waiting", "Requests not admitted yet", self._scheduler.waiting),
            ("vllm:kv_cache_usage_perc", "KV cache in use, of 1", usage),
        ):
            family = GaugeMetricFamily(name, text, labels=["model_name"])
            family.add_metric([self._model], value)
            yield family
        sizes = GaugeMetricFamily("vllm:cache_config_info", "The KV cache", labels=["block_size", "num_gpu_blocks"])
        sizes.add_metric([str(BLOCK_ROWS), str(self._blocks.count - 1)], 1)
        yield sizes

    def _requests_of_adapters(self) -> Metric:
        """vLLM's: names as the labels' values, the time of the reading as the value."""
        running, waiting = self._ledger.adapters()
        names = [",".join(sorted(which)[:MOST_LISTED]) for which in (running, waiting - running)]
        family = GaugeMetricFamily(
            "vllm:lora_requests_info",
            "Adapters with requests that run, and with others that wait",
            labels=["max_lora", "running_lora_adapters", "waiting_lora_adapters"],
        )
        family.add_metric([str(self._most_adapters()), *names], time.time())
        return family

    def _most_adapters(self) -> int:
        """So many may be on the device at once, as far as others are as large as those that are."""
        there, used = len(self._residency.snapshot()), self._residency.bytes
        if not there or not used:
            return self._max_running
        free = self._residency.budget_bytes - used
        return max(1, min(self._max_running, there + free * there // used))

    def _adapters_loaded(self) -> Metric:
        """vLLM's words for the tiers: "gpu" is the device, whatever it is, "cpu" host memory."""
        family = GaugeMetricFamily(
            "vllm:lora_adapter_loaded",
            "Adapters in memory, by name",
            labels=["adapter_name", "level", "pinned", "rank"],
        )
        device = {one.digest for one in self._residency.snapshot()}
        pinned = self._residency.pinned
        loaded = {one.digest: one for one in self._loader.snapshot()}
        named = [
            (name, one) for name, served in self._loader.served().items() if (one := loaded.get(served.digest or ""))
        ]
        for name, one in sorted(named, key=lambda each: each[1].digest not in device)[:MOST_LISTED]:
            level = "gpu" if one.digest in device else "cpu"
            family.add_metric([name, level, str(one.digest in pinned).lower(), str(one.rank)], 1)
        return family
