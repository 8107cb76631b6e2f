"""The daemon beside other stream processors: one job, one topic, one broker, one core each, in turn.

The job: read watch events as JSON, drop those whose id the user's history holds already, append the rest to the user's
last 128 events, and make that durable: in the state store, in the changelog topic, and then in the committed offsets.
Nothing else is produced: lists are a model's work. Every system has the topic as a group of its own, and is checked:
what its changelog holds of 200 users is the fold of that user's events, and of no fewer than it has committed.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Final

import msgspec
from aiokafka import TopicPartition
from msgspec import Struct

from mtgr.errors import InputError
from stream import changelog
from stream.bench import fold
from stream.bench.environment import Bench
from stream.bench.event_topic import EventTopic, filled, offsets_reader
from stream.bench.page import markdown_table
from stream.bench.progress import follow
from stream.bench.rivals.histories import MAX_EVENTS, Row, narrowed
from stream.bench.rivals.systems import RIVALS, Rival
from stream.demo.processes import Child
from stream.kafka import connected
from stream.settings import Settings
from stream.source import lone_consumer
from stream.tools.partitioning import partition_of

COLUMNS: Final = ("system", "delivery", "commit every", "events/s", "events/s of CPU", "each run, events/s")
AIM: Final = 4.0
# so few that histories are long for most of a run, as they are in a service that has run for a day
USERS: Final = 5_000

_OURS: Final = "mtgr-stream"
_PARTITIONS: Final = 6
_CYCLES: Final = (("at_least_once", 100), ("exactly_once", 100))
_CHECKED_USERS: Final = 200
_STOP_SECONDS: Final = 20.0


class Run(Struct, frozen=True):
    """One run of one system."""

    title: str
    delivery: str
    commits: str
    events_per_second: float
    events_per_cpu_second: float
    users_checked: int
    load: float
    """Of the machine, over the last minute."""

    @property
    def row(self) -> tuple[str, str, str]:
        """What runs of the same system and settings share."""
        return self.title, self.delivery, self.commits


def run(bench: Bench, checkpoint: Path, *, repeats: int, events: int, out: Path) -> list[Run]:
    """All systems in turn, so often; the runs are added to `out` as JSON lines, too.

    A system that does not come to the end of the topic is measured for the seconds it has. Raises InputError where an
    environment is missing, RuntimeError where what a system keeps is not the fold.
    """
    missing = [rival for rival in RIVALS if not rival.python.exists()]
    if missing:
        raise InputError(f"{missing[0].python} is not there: run `make rivals` first")
    topic = filled(bench, partitions=_PARTITIONS, events=events, users=USERS)
    runs: list[Run] = []
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("ab") as lines:
        for _ in range(repeats):
            for delivery, interval_ms in _CYCLES:
                runs.append(_run_ours(bench, checkpoint, topic, delivery, interval_ms))
                lines.write(msgspec.json.encode(runs[-1]) + b"\n")
            for rival in RIVALS:
                runs.append(_run_rival(bench, rival, topic))
                lines.write(msgspec.json.encode(runs[-1]) + b"\n")
    return runs


def _run_ours(bench: Bench, checkpoint: Path, topic: EventTopic, delivery: str, interval_ms: int) -> Run:
    found = fold.run(bench, checkpoint, topic, commit_interval_ms=interval_ms, delivery=delivery)
    return Run(
        _OURS,
        delivery.replace("_", " "),
        _time(interval_ms),
        found.events_per_second,
        found.events_per_cpu_second,
        found.users_checked,
        os.getloadavg()[0],
    )


def _run_rival(bench: Bench, rival: Rival, topic: EventTopic) -> Run:
    settings, _ = bench.settings(topics__events=topic.name, topics__partitions=topic.partitions)
    group = settings.kafka.group_id
    directory = bench.directory / group
    directory.mkdir()
    command = rival.command(
        settings.kafka.bootstrap_servers, group, topic.name, topic.partitions, directory / "state"
    )
    with Child(command, directory / "log", name=rival.title, environment=rival.environment) as child:
        try:
            rate = asyncio.run(follow(settings, topic, child.pid, rival.seconds))
        except RuntimeError as error:
            raise child.failure(str(error)) from None
        child.stop(_STOP_SECONDS)
    checked = asyncio.run(_check(settings, rival, topic))
    return Run(
        f"{rival.title} {rival.version}",
        rival.delivery,
        rival.commits,
        rate.per_second,
        rate.per_cpu_second,
        checked,
        os.getloadavg()[0],
    )


async def _check(settings: Settings, rival: Rival, topic: EventTopic) -> int:
    """Compare the changelog with folds of the same events; returns how many users were compared."""
    async with offsets_reader(settings.kafka) as read:
        committed = await read()
    name = rival.changelog(settings.kafka.group_id, topic.name)
    kept: dict[bytes, bytes | None] = {}
    for number in range(topic.partitions):
        tp = TopicPartition(name, number)
        async with connected(lone_consumer(settings), settings.kafka) as consumer:
            end = (await consumer.end_offsets([tp]))[tp]
            kept |= await changelog.last_values(consumer, tp, 0, end)
    histories = topic.histories(_CHECKED_USERS)
    for user_id, events in histories.items():
        value = kept.get(rival.key(user_id))
        rows = rival.rows(value) if value is not None else []
        offset = committed.get(partition_of(user_id.encode(), topic.partitions), 0)
        done = sum(at < offset for at, _ in events)
        theirs = [narrowed(event) for _, event in events]
        if not is_fold(rows, theirs, done):
            raise RuntimeError(
                f"{rival.title}: what is kept of {user_id} is not the fold of the {done} events committed, or of more"
            )
    return len(histories)


def is_fold(kept: Sequence[Row], events: Sequence[Row], committed: int) -> bool:
    """Whether so many rows are the last MAX_EVENTS of the first events, of `committed` of them or more."""
    return any(
        list(kept) == list(events[max(count - MAX_EVENTS, 0) : count])
        for count in range(committed, len(events) + 1)
    )


def rows(runs: Sequence[Run]) -> list[list[str]]:
    """A row of COLUMNS for each system, in the order they ran in."""
    return [
        [
            *row,
            f"{_rate(runs, row):,.0f}",
            f"{_cpu_rate(runs, row):,.0f}",
            " ".join(f"{run.events_per_second:,.0f}" for run in runs if run.row == row),
        ]
        for row in dict.fromkeys(run.row for run in runs)
    ]


def verdict(runs: Sequence[Run]) -> str:
    """The daemon as it comes against the best of the others, in a sentence."""
    theirs = {run.row for run in runs if run.title != _OURS}
    ours = next(run.row for run in runs if run.title == _OURS)
    best = max(theirs, key=lambda row: _rate(runs, row))
    times = _rate(runs, ours) / _rate(runs, best)
    cpu_times = _cpu_rate(runs, ours) / max(_cpu_rate(runs, row) for row in theirs)
    said = "as was the aim" if min(times, cpu_times) >= AIM else f"where {AIM:g} times was the aim"
    return (
        f"{_OURS} as it comes ({ours[1]}, {ours[2]}) does {times:.1f} times the events/s of the best of the others "
        f"({best[0]}, {best[1]}, {best[2]}), and {cpu_times:.1f} times by second of CPU, {said}."
    )


def section(runs: Sequence[Run], circumstances: str, events: int) -> str:
    """The rates and what they say, for the page."""
    repeats = sum(run.row == runs[0].row for run in runs)
    return (
        f"{markdown_table(COLUMNS, rows(runs))}\n{verdict(runs)}\n\n"
        f"Medians of {repeats} runs of each, in turn, {events:,} events of {USERS:,} users in {_PARTITIONS} "
        f"partitions; {circumstances}. In every run {runs[0].users_checked} users were compared with the fold of their "
        f"events.\n"
    )


def _rate(runs: Sequence[Run], row: tuple[str, str, str]) -> float:
    return median(run.events_per_second for run in runs if run.row == row)


def _cpu_rate(runs: Sequence[Run], row: tuple[str, str, str]) -> float:
    return median(run.events_per_cpu_second for run in runs if run.row == row)


def _time(milliseconds: int) -> str:
    return f"{milliseconds // 1000} s" if milliseconds % 1000 == 0 else f"{milliseconds} ms"
