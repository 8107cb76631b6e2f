"""Events per second through fold, state, changelog and commit, on one core."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Final

from msgspec import Struct

from stream.bench.environment import Bench
from stream.bench.event_topic import EventTopic, filled
from stream.bench.page import markdown_table
from stream.bench.progress import follow
from stream.sequences import UserState
from stream.settings import Settings
from stream.state import RocksStore

DELIVERIES: Final = ("at_least_once", "exactly_once")
COLUMNS: Final = (
    "partitions",
    "commit every",
    "delivery",
    "events/s",
    "events/s of CPU",
    "each run, events/s",
)
USERS: Final = 20_000
MAX_EVENTS: Final = 128

_CYCLES: Final = ((1, 100), (6, 100), (6, 1_000))  # partitions, commit interval in milliseconds
_CHECKED_USERS: Final = 200
_SECONDS: Final = 120.0


class FoldResult(Struct, frozen=True):
    """One run: what it was given, how fast it was, and that its state is right."""

    partitions: int
    commit_interval_ms: int
    delivery: str
    events_per_second: float
    events_per_cpu_second: float
    users_checked: int


def run_all(bench: Bench, checkpoint: Path, *, repeats: int, events: int) -> list[FoldResult]:
    """Every cycle in both deliveries, in turn, so that both meet the same noise."""
    topics = {
        partitions: filled(bench, partitions=partitions, events=events, users=USERS)
        for partitions in sorted({partitions for partitions, _ in _CYCLES})
    }
    return [
        run(bench, checkpoint, topics[partitions], commit_interval_ms=interval_ms, delivery=delivery)
        for partitions, interval_ms in _CYCLES
        for repeat in range(repeats)
        for delivery in (DELIVERIES if repeat % 2 == 0 else reversed(DELIVERIES))
    ]


def run(
    bench: Bench, checkpoint: Path, topic: EventTopic, *, commit_interval_ms: int, delivery: str
) -> FoldResult:
    """Let a daemon on one core fold a whole topic, and compare the state of some users with a pure fold.

    No list becomes due. The rate is that of committed offsets, from a tenth of the events to the last; the one by CPU
    second, of all the daemon's threads, says what it would be on a machine that does nothing else.
    """
    settings, values = bench.settings_to_fold(
        checkpoint,
        topics__events=topic.name,
        topics__partitions=topic.partitions,
        state__max_events=MAX_EVENTS,
        stream__commit_interval_ms=commit_interval_ms,
        stream__delivery=delivery,
    )
    with bench.daemon(values, cores="0") as daemon:
        rate = asyncio.run(follow(settings, topic, daemon.child.pid, _SECONDS))
    checked = _check(settings, topic)
    return FoldResult(
        topic.partitions, commit_interval_ms, delivery, rate.per_second, rate.per_cpu_second, checked
    )


def rows(results: Sequence[FoldResult]) -> list[list[str]]:
    """A row of COLUMNS for each cycle and delivery."""

    def cycle(result: FoldResult) -> tuple[int, int, str]:
        return result.partitions, result.commit_interval_ms, result.delivery

    return [
        [
            str(partitions),
            f"{interval_ms} ms",
            delivery.replace("_", " "),
            f"{median(result.events_per_second for result in runs):,.0f}",
            f"{median(result.events_per_cpu_second for result in runs):,.0f}",
            " ".join(f"{result.events_per_second:,.0f}" for result in runs),
        ]
        for (partitions, interval_ms, delivery), found in groupby(sorted(results, key=cycle), cycle)
        for runs in [list(found)]
    ]


def costs(results: Sequence[FoldResult]) -> list[str]:
    """What exactly once costs in each cycle, a sentence for each."""
    sentences = []
    for partitions, interval_ms in _CYCLES:
        per_second, per_cpu_second = (
            median(rate(result) for result in results if _is(result, partitions, interval_ms, "exactly_once"))
            / median(
                rate(result) for result in results if _is(result, partitions, interval_ms, "at_least_once")
            )
            - 1
            for rate in (_per_second, _per_cpu_second)
        )
        sentences.append(
            f"{partitions} partition{'s' * (partitions > 1)}, {interval_ms} ms: {per_second:+.0%} events/s, "
            f"{per_cpu_second:+.0%} by second of CPU"
        )
    return sentences


def section(results: Sequence[FoldResult], circumstances: str, events: int) -> str:
    """The rates and what they say, for the page."""
    return (
        f"{markdown_table(COLUMNS, rows(results))}\n"
        f"Exactly once against at least once: {'; '.join(costs(results))}. Medians of "
        f"{len(results) // (2 * len(_CYCLES))} runs of each, in turn on the same broker, {events:,} events of "
        f"{USERS:,} users; {circumstances}. In every run the states of {results[0].users_checked} users equal the pure "
        f"fold of their events.\n"
    )


def _is(result: FoldResult, partitions: int, interval_ms: int, delivery: str) -> bool:
    return (result.partitions, result.commit_interval_ms, result.delivery) == (
        partitions,
        interval_ms,
        delivery,
    )


def _per_second(result: FoldResult) -> float:
    return result.events_per_second


def _per_cpu_second(result: FoldResult) -> float:
    return result.events_per_cpu_second


def _check(settings: Settings, topic: EventTopic) -> int:
    """Compare what the daemon stored for some users with a fold of the same events here; returns how many."""
    expected = topic.histories(_CHECKED_USERS)
    root = settings.state.directory / settings.changelog_topic
    stores = [
        RocksStore(root / str(number), f"{settings.kafka.group_id}/{settings.topics.events}/{number}")
        for number in range(settings.topics.partitions)
    ]
    try:
        for user_id, theirs in expected.items():
            pure = UserState(user_id)
            for offset, event in theirs:
                pure.fold(event, offset, 0, None, MAX_EVENTS)
            found = [state for store in stores if (state := store.load(user_id)) is not None]
            if len(found) != 1 or (found[0].records, found[0].videos) != (pure.records, pure.videos):
                raise RuntimeError(f"the state of {user_id} is not the fold of its events")
    finally:
        for store in stores:
            store.close()
    return len(expected)
