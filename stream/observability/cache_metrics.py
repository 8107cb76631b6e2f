"""What the engines of this daemon have in their KV caches, read from them at each scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from mtgr.requests import CacheStats


class CacheMetrics(Collector):
    """`mtgr_session_cache_*` by replica; nothing of one that is not started, or whose cache is not this daemon's."""

    def __init__(self, read: Callable[[], Mapping[str, CacheStats | None]]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        labels = ["replica"]
        blocks = GaugeMetricFamily(
            "mtgr_session_cache_blocks", "Blocks of the KV cache that sessions can have.", labels=labels
        )
        used = GaugeMetricFamily(
            "mtgr_session_cache_blocks_in_use", "Blocks of the KV cache that sessions have.", labels=labels
        )
        sessions = GaugeMetricFamily(
            "mtgr_session_cache_sessions", "Users whose history is in the KV cache.", labels=labels
        )
        evictions = CounterMetricFamily(
            "mtgr_session_cache_evictions", "Sessions whose blocks went to other users.", labels=labels
        )
        for replica, stats in self._read().items():
            if stats is not None:
                blocks.add_metric([replica], stats.blocks)
                used.add_metric([replica], stats.used_blocks)
                sessions.add_metric([replica], stats.sessions)
                evictions.add_metric([replica], stats.evictions)
        return [blocks, used, sessions, evictions]
