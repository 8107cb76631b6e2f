"""Prometheus metrics of one daemon."""

from __future__ import annotations

import time
from collections import Counter as Counts
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

from mtgr.requests import CacheStats
from stream.observability.cache_metrics import CacheMetrics

if TYPE_CHECKING:
    from stream.outgoing import OutgoingList

_EVENT_TYPES: Final = ("watch", "like", "favorite", "share", "profile", "forget")
_VIDEO_OUTCOMES: Final = ("added", "known", "refused", "invalid")
_HISTORIES: Final = ("session", "recomputed")
_LATENCIES: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0, 60.0)
_COMMIT_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_RESTORE_SECONDS: Final = (0.01, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0)
_BATCH_USERS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class _Counters(dict[str, Counter]):
    """One counter's children by label, bound on first use, so that hot paths pay for a look-up in a dict."""

    def __init__(self, counter: Counter, known: tuple[str, ...] = ()) -> None:
        super().__init__()
        self._counter = counter
        for label in known:  # shown as 0 from the start, so that a rate over the first increment is right
            self[label] = counter.labels(label)

    def __missing__(self, label: str) -> Counter:
        child = self[label] = self._counter.labels(label)
        return child


class Metrics:
    """Counters, gauges and histograms, all named `mtgr_*`, in a registry of their own.

    Hot paths call `inc` once a batch, not once an event: `metrics.events["watch"].inc(n)`.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._before_scrape: list[Callable[[], None]] = []
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

        self.events = _Counters(
            self._counter("events", "Valid events read, duplicates included.", "type"), _EVENT_TYPES
        )
        self.duplicates = self._counter(
            "duplicates", "Events that changed nothing: in their user's sequence already, or an old profile."
        )
        self.out_of_order = self._counter(
            "out_of_order_events", "Events older than the one of their user that came before."
        )
        self.dead_letters = _Counters(
            self._counter("dead_letters", "Records sent to the dead-letter topic.", "stage")
        )
        self.videos = _Counters(
            self._counter(
                "videos",
                "Videos read from their topic: added to the catalog, known to it, refused, or invalid.",
                "outcome",
            ),
            _VIDEO_OUTCOMES,
        )
        self.lists = self._counter("lists", "Recommendation lists published.")
        self.refusals = self._counter("refusals", "List requests that the model refused.")
        self.generation_failures = self._counter("generation_failures", "Batches that the engine failed.")
        self.engine_restarts = self._counter("engine_restarts", "Restarts of a failed engine.")
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of history that lists were made from.")
        self.cached_tokens = self._counter("cached_tokens", "Prompt tokens taken from the KV cache.")
        self.list_requests = _Counters(
            self._counter(
                "list_requests",
                "Lists made: session where the history was cached up to the new events, recomputed where none was.",
                "history",
            ),
            _HISTORIES,
        )
        self.commits = self._counter("commits", "Commit cycles that finished.")
        self.commit_failures = self._counter("commit_failures", "Commit cycles that failed.")
        self.restored_records = self._counter("restored_records", "Changelog records read back into state.")

        self.state_repairs = self._counter(
            "state_repairs", "Partitions whose local files were bad and were restored from the changelog."
        )

        self.list_events = self._histogram("list_events", "Events that one list serves.", _BATCH_USERS)
        self.overdue_seconds = self._histogram(
            "overdue_seconds", "From when a list was due to when it was begun.", _LATENCIES
        )
        self.list_batch_users = self._histogram("list_batch_users", "Users in a batch.", _BATCH_USERS)
        self.event_to_list_seconds = self._histogram(
            "event_to_list_seconds", "From the first unserved event's arrival to its list.", _LATENCIES
        )
        self.generation_seconds = self._histogram("generation_seconds", "Generation of a batch.", _LATENCIES)
        self.commit_seconds = self._histogram(
            "commit_seconds", "Duration of a commit cycle.", _COMMIT_SECONDS
        )
        self.restore_seconds = self._histogram(
            "restore_seconds", "Restore of an assigned partition's state.", _RESTORE_SECONDS
        )

        self.owed_users = self._gauge("owed_users", "Users who are owed a list.")
        self.in_flight_requests = self._gauge("in_flight_requests", "List requests at the generator.")
        self.in_flight_bytes = self._gauge("in_flight_bytes", "Bytes of events fetched and not committed.")
        self.assigned_partitions = self._gauge("assigned_partitions", "Partitions assigned to this daemon.")
        self.paused_partitions = self._gauge("paused_partitions", "Partitions paused to bound memory.")
        self.state_cache_bytes = self._gauge("state_cache_bytes", "Bytes of sequences kept at hand.")
        self._consumer_lag = self._gauge(
            "consumer_lag", "Events in Kafka that were not read yet.", "topic", "partition"
        )
        self._state_users = self._gauge("state_users", "Users in state.", "topic", "partition")
        self._partition_owed = self._gauge(
            "partition_owed_users", "Users of a partition who are owed a list.", "topic", "partition"
        )
        self._partition_events = self._counter(
            "partition_events", "Records read from a partition.", "topic", "partition"
        )
        self._partition_lists = self._counter(
            "partition_lists", "Lists published for users of a partition.", "topic", "partition"
        )
        self.busiest_partition_share = self._gauge(
            "busiest_partition_share",
            "Share of the busiest partition in what this daemon read in the last minute or two.",
        )
        self.hottest_user_share = self._gauge(
            "hottest_user_share",
            "Share of the user with the most records in what this daemon read in the last minute or two.",
        )

    def published(self, lists: Sequence[OutgoingList]) -> None:
        """These lists are in Kafka now."""
        self.lists.inc(len(lists))
        now_ms = time.time_ns() // 1_000_000
        for item in lists:
            self.event_to_list_seconds.observe(max(now_ms - item.since_ms, 0) / 1000)
        for (topic, partition), count in Counts(
            (o.value.trigger.topic, o.value.trigger.partition) for o in lists
        ).items():
            self._partition_lists.labels(topic, partition).inc(count)

    def count_records(self, topic: str, partition: int, records: int) -> None:
        """Records of a partition were read."""
        self._partition_events.labels(topic, partition).inc(records)

    def set_partition_owed(self, topic: str, partition: int, users: int) -> None:
        """Users of a partition who are owed a list."""
        self._partition_owed.labels(topic, partition).set(users)

    def watch_caches(self, read: Callable[[], Mapping[str, CacheStats | None]]) -> None:
        """Show what the engines have in their KV caches, by replica."""
        self.registry.register(CacheMetrics(read))

    def set_consumer_lag(self, topic: str, partition: int, events: int) -> None:
        """Events of a partition that were not read yet."""
        self._consumer_lag.labels(topic, partition).set(events)

    def set_state_users(self, topic: str, partition: int, users: int) -> None:
        """Users in a partition's state."""
        self._state_users.labels(topic, partition).set(users)

    def remove_partition(self, topic: str, partition: int) -> None:
        """Drop what is told of a revoked partition, which another daemon reports from now on."""
        for metric in (
            self._consumer_lag,
            self._state_users,
            self._partition_owed,
            self._partition_events,
            self._partition_lists,
        ):
            metric.remove_by_labels({"topic": topic, "partition": str(partition)})

    def before_scrape(self, refresh: Callable[[], None]) -> None:
        """Call `refresh` before every scrape, to set gauges that nobody needs in between."""
        self._before_scrape.append(refresh)

    def refresh(self) -> None:
        """Run what was handed to `before_scrape`."""
        for refresh in self._before_scrape:
            refresh()

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"mtgr_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"mtgr_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"mtgr_{name}", text, buckets=buckets, registry=self.registry)
