"""Promises of stream.committer: no offset is committed before what it covers is durable, whatever fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaConnectionError, KafkaError
from dict_store import DictStore
from hypothesis import given, settings
from hypothesis import strategies as st
from partitions import TOPIC, likes, result, running

from stream import committer as committing
from stream.committer import Committer
from stream.errors import Fatal
from stream.kafka import KafkaUnreachable
from stream.observability import Health, Metrics
from stream.outgoing import OutgoingList
from stream.partition import CommitWork, Partition, Phase


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committing, "_FIRST_PAUSE_SECONDS", 0.001)


class Kafka:
    """A commit cycle, and a consumer that can be asked for topics, that fail as they are told.

    outcomes: what the next cycles do, each an error to raise or "hang"; those after succeed.
    torn: how many changes of a cycle that fails are durable all the same.
    """

    def __init__(self, *outcomes: Exception | str, torn: int = 0) -> None:
        self.outcomes = list(outcomes)
        self.torn = torn
        self.answers = True
        self.abandons: set[TopicPartition] = set()
        self.abandoned: list[Partition] = []
        self.cycles: list[list[CommitWork]] = []
        self.restarts = 0
        self.restart_error: Exception | None = None
        self.under_way = 0
        self.offsets: dict[TopicPartition, int] = {}
        self.durable: dict[TopicPartition, DictStore] = {}
        self._changed = asyncio.Condition()

    async def start(self) -> None:
        return

    async def stop(self) -> None:
        return

    async def claim(self, tp: TopicPartition) -> None:
        raise AssertionError("the committer claims nothing")

    async def release(self, tps: Iterable[TopicPartition]) -> None:
        raise AssertionError("the committer releases nothing")

    async def publish(self, lists: Sequence[OutgoingList]) -> bool:
        raise AssertionError("the committer publishes nothing")

    async def restart(self) -> None:
        self.restarts += 1
        if self.restart_error is not None:
            raise self.restart_error

    async def commit(self, work: Sequence[CommitWork]) -> Sequence[CommitWork]:
        assert not self.under_way, "two cycles at once"
        self.under_way += 1
        try:
            self.cycles.append(list(work))
            async with self._changed:
                self._changed.notify_all()
            await asyncio.sleep(0)
            outcome = self.outcomes.pop(0) if self.outcomes else None
            for part in work:
                store = self.durable.setdefault(part.partition.tp, DictStore())
                store.apply(part.changes if outcome is None else part.changes[: self.torn], 0)
            if outcome == "hang":
                await asyncio.Event().wait()
            if isinstance(outcome, Exception):
                raise outcome
            kept = [part for part in work if part.partition.tp not in self.abandons]
            self.offsets |= {part.partition.tp: part.offset for part in kept if part.offset is not None}
            return [part for part in work if part.partition.tp in self.abandons]
        finally:
            self.under_way -= 1

    async def topics(self) -> set[str]:
        if not self.answers:
            raise KafkaConnectionError("no route to the broker")
        return {TOPIC}

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20), self._changed:
            await self._changed.wait_for(condition)


def committer_of(
    kafka: Kafka, *partitions: Partition, patience: float = 20, interval: float = 0.001
) -> tuple[Committer, Metrics, Health]:
    metrics, health = Metrics(), Health()
    committer = Committer(
        {partition.tp: partition for partition in partitions},
        kafka,
        kafka,  # as the consumer
        metrics,
        health,
        kafka.abandoned.append,
        interval_seconds=interval,
        patience_seconds=patience,
    )
    return committer, metrics, health


@asynccontextmanager
async def background(work: Any) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.ensure_future(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_all_partitions_are_committed_together() -> None:
    """One cycle takes the work of every partition, commits their offsets, and marks it all durable."""
    first, second = running(0), running(1)
    first.fold(likes(["a", "b"]), 0.0)
    second.fold(likes(["c"], 10), 0.0)
    kafka = Kafka()
    committer, metrics, health = committer_of(kafka, first, second)
    await committer.commit([first, second])
    assert len(kafka.cycles) == 1
    assert kafka.offsets == {first.tp: 2, second.tp: 11}
    assert first.uncommitted_bytes == second.uncommitted_bytes == 0
    assert first.cache.get("a").writing == 0
    assert metrics.registry.get_sample_value("mtgr_commits_total") == 1
    assert health.is_ready


async def test_nothing_to_commit_asks_nothing_of_kafka() -> None:
    """An idle daemon writes nothing to Kafka."""
    partition = running()
    kafka = Kafka()
    committer, _, _ = committer_of(kafka, partition)
    await committer.commit([partition])
    assert kafka.cycles == []


async def test_a_failed_cycle_is_repeated_with_the_same_work() -> None:
    """After a failure the same work is written again on new connections, and /readyz tells of it meanwhile."""
    partition = running()
    partition.fold(likes(["a"]), 0.0)
    kafka = Kafka(KafkaConnectionError("gone"), OSError("still gone"))
    committer, metrics, health = committer_of(kafka, partition)
    reasons: list[str | None] = []
    restart = kafka.restart

    async def seen() -> None:
        reasons.append(health.reasons["kafka"])
        if not kafka.restarts:
            partition.fold(likes(["b"], 1), 0.0)
        await restart()

    kafka.restart = seen  # type: ignore[method-assign]
    await committer.commit([partition])
    assert [[part.offset for part in cycle] for cycle in kafka.cycles] == [[1], [1], [1]]
    assert kafka.cycles[0] == kafka.cycles[1] == kafka.cycles[2]
    assert reasons[0] is not None
    assert "gone" in reasons[0]
    assert kafka.restarts == 2
    assert kafka.offsets == {partition.tp: 1}
    assert health.is_ready
    assert metrics.registry.get_sample_value("mtgr_commit_failures_total") == 2
    await committer.commit([partition])
    assert kafka.offsets == {partition.tp: 2}


async def test_kafka_that_fails_for_too_long_is_fatal() -> None:
    """A commit that fails for longer than the set time stops the daemon with the reason, and commits no offset."""
    partition = running()
    partition.fold(likes(["a"]), 0.0)
    kafka = Kafka(*(KafkaConnectionError("gone") for _ in range(10_000)))
    committer, _, health = committer_of(kafka, partition, patience=0.05)
    with pytest.raises(Fatal, match=r"connect_timeout_seconds = 0\.05.*gone"):
        await committer.commit([partition])
    assert kafka.offsets == {}
    assert not health.is_ready


async def test_kafka_that_never_answers_is_told_and_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit without an answer turns /readyz red while it waits, and stops the daemon after the set time."""
    monkeypatch.setattr(committing, "_SLOW_SECONDS", 0.02)
    partition = running()
    partition.fold(likes(["a"]), 0.0)
    kafka = Kafka("hang")
    committer, _, health = committer_of(kafka, partition, patience=0.1)
    with pytest.raises(Fatal, match="not acknowledged"):
        await committer.commit([partition])
    assert not health.is_ready
    assert kafka.under_way == 0


async def test_kafka_that_cannot_be_reached_again_is_fatal() -> None:
    """A broker that is gone for good ends the daemon as a failure, not as a mistake in its settings."""
    partition = running()
    partition.fold(likes(["a"]), 0.0)
    kafka = Kafka(KafkaError("gone"))
    kafka.restart_error = KafkaUnreachable("kafka.bootstrap_servers: no broker answered")
    committer, _, _ = committer_of(kafka, partition)
    with pytest.raises(Fatal, match="no broker answered"):
        await committer.commit([partition])


async def test_a_silent_broker_is_noticed_with_nothing_to_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle daemon asks Kafka now and then, is not ready while it has no answer, and ends after the set time."""
    monkeypatch.setattr(committing, "_IDLE_CHECK_SECONDS", 0.001)
    kafka = Kafka()
    kafka.answers = False
    committer, _, health = committer_of(kafka, running(), patience=0.05)
    with pytest.raises(Fatal, match="no route to the broker"):
        await asyncio.wait_for(committer.run(), 20)
    assert not health.is_ready


async def test_cycles_never_overlap() -> None:
    """Any number of commits asked for at once, beside the regular ones, run one after another."""
    partition = running()
    kafka = Kafka()
    committer, _, _ = committer_of(kafka, partition)
    async with background(committer.run()):
        for number in range(20):
            partition.fold(likes([f"u{number}"], number), 0.0)
            await asyncio.gather(*(committer.commit([partition]) for _ in range(5)))
    assert kafka.offsets == {partition.tp: 20}


async def test_commits_come_by_themselves() -> None:
    """What is folded is committed an interval later, without anybody asking, again and again."""
    partition = running()
    kafka = Kafka()
    committer, _, _ = committer_of(kafka, partition)
    async with background(committer.run()):
        for number in range(5):
            partition.fold(likes(["a"], number), 0.0)
            await kafka.until(lambda number=number: len(kafka.cycles) > number)  # type: ignore[misc]


async def test_a_stop_in_the_middle_of_a_cycle_loses_no_work() -> None:
    """Work that a cancelled cycle had taken is part of the last commit: its offset covers what is durable."""
    partition = running()
    partition.fold(likes(["a", "b"]), 0.0)
    kafka = Kafka("hang")
    committer, _, _ = committer_of(kafka, partition)
    async with background(committer.run()):
        await kafka.until(lambda: len(kafka.cycles) == 1)
    assert kafka.offsets == {}
    await committer.commit([partition])
    assert kafka.offsets == {partition.tp: 2}
    assert sorted(user for user, _ in kafka.durable[partition.tp].scan()) == ["a", "b"]
    assert partition.uncommitted_bytes == 0


async def test_a_lost_partition_is_dropped_from_what_is_repeated() -> None:
    """A partition that was lost while its commit failed is not written again: it is another daemon's by now."""
    lost, kept = running(0), running(1)
    lost.fold(likes(["a"]), 0.0)
    kept.fold(likes(["b"]), 0.0)
    kafka = Kafka(KafkaError("rebalance"))
    committer, _, _ = committer_of(kafka, lost, kept)
    restart = kafka.restart

    async def lose() -> None:
        lost.phase = Phase.CLOSED
        await restart()

    kafka.restart = lose  # type: ignore[method-assign]
    await committer.commit([lost, kept])
    assert kafka.offsets[kept.tp] == 1
    kept.fold(likes(["c"], 1), 0.0)
    await committer.commit([kept])
    assert kafka.offsets[kept.tp] == 2
    assert all(part.partition is kept for part in kafka.cycles[-1])


async def test_work_that_was_given_up_is_not_repeated() -> None:
    """A partition whose transaction failed is lost as it is and told of, once; the others are committed."""
    failed, kept = running(0), running(1)
    for partition in (failed, kept):
        partition.fold(likes(["a"]), 0.0)
    kafka = Kafka()
    kafka.abandons = {failed.tp}
    committer, metrics, _ = committer_of(kafka, failed, kept)
    await committer.commit([failed, kept])
    assert kafka.abandoned == [failed]
    assert failed.phase is Phase.CLOSED
    assert kafka.offsets == {kept.tp: 1}
    assert kept.uncommitted_bytes == 0
    assert metrics.registry.get_sample_value("mtgr_commit_failures_total") == 1
    kafka.abandons = set()
    kept.fold(likes(["b"], 1), 0.0)
    await committer.commit([kept])
    assert [[part.partition for part in cycle] for cycle in kafka.cycles] == [[failed, kept], [kept]]


async def test_lists_that_come_with_their_states_are_counted_when_they_are_committed() -> None:
    """A list that waits for its commit is published then, and not before."""
    partition = running()
    partition.fold(likes(["a"]), 0.0)
    pending = partition.take_due(1e9)
    assert pending is not None
    value = partition.make_list(pending, result(pending.request), 2_000)
    item = OutgoingList(value, None, pending.since_ms)
    partition.settle(pending, item)
    kafka = Kafka(KafkaError("not yet"))
    committer, metrics, _ = committer_of(kafka, partition)
    assert metrics.registry.get_sample_value("mtgr_lists_total") == 0
    await committer.commit([partition])
    assert [part.lists for cycle in kafka.cycles for part in cycle] == [[item], [item]]
    assert metrics.registry.get_sample_value("mtgr_lists_total") == 1


async def test_losing_every_partition_ends_the_repetition() -> None:
    """When all that failed to commit was lost, the committer is free for what is assigned next."""
    lost, new = running(0), running(0)
    lost.fold(likes(["a"]), 0.0)
    kafka = Kafka("hang")
    committer, _, _ = committer_of(kafka, lost)
    async with background(committer.commit([lost])):
        await kafka.until(lambda: len(kafka.cycles) == 1)
    lost.close()
    new.fold(likes(["b"], 5), 0.0)
    async with asyncio.timeout(20):
        await committer.commit([new])
    assert kafka.offsets == {new.tp: 6}
    assert all(part.partition is new for cycle in kafka.cycles[1:] for part in cycle)


async def test_the_interval_is_kept() -> None:
    """Commits are an interval apart, however little there is to commit."""
    partition = running()
    kafka = Kafka()
    committer, _, _ = committer_of(kafka, partition, interval=0.05)
    started = time.monotonic()
    async with background(committer.run()):
        for number in range(4):
            partition.fold(likes(["a"], number), 0.0)
            await kafka.until(lambda number=number: len(kafka.cycles) > number)  # type: ignore[misc]
    assert time.monotonic() - started >= 0.19


steps = st.lists(
    st.one_of(
        st.tuples(st.just("fold"), st.integers(0, 1), st.integers(1, 20)),
        st.tuples(st.just("commit"), st.integers(0, 3), st.integers(0, 12)),
        st.tuples(st.just("cancel"), st.integers(0, 6), st.integers(0, 12)),
    ),
    min_size=1,
    max_size=20,
)


@settings(max_examples=150)
@given(steps)
def test_offsets_never_pass_what_is_durable(steps: list[tuple[str, int, int]]) -> None:
    """Whatever fails, tears or is cancelled, every event below a committed offset is in the durable state."""

    async def scenario() -> None:
        parts = [running(0), running(1)]
        topics: list[list[str]] = [[], []]
        kafka = Kafka()
        committer, _, _ = committer_of(kafka, *parts)
        for step, number, amount in steps:
            if step == "fold":
                users = [f"u{(len(topics[number]) + i) % 3}" for i in range(amount)]
                parts[number].fold(likes(users, len(topics[number])), 0.0)
                topics[number] += users
                continue
            kafka.torn = amount
            if step == "commit":
                kafka.outcomes = [KafkaError("failed")] * number
                await committer.commit(parts)
            else:
                task = asyncio.create_task(committer.commit(parts))
                for _ in range(number):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            _check(kafka, parts, topics)
        kafka.outcomes = []
        await committer.commit(parts)
        _check(kafka, parts, topics)
        assert kafka.offsets == {
            part.tp: len(topic) for part, topic in zip(parts, topics, strict=True) if topic
        }
        assert all(part.uncommitted_bytes == 0 for part in parts)

    asyncio.run(scenario())


def _check(kafka: Kafka, parts: list[Partition], topics: list[list[str]]) -> None:
    for part, topic in zip(parts, topics, strict=True):
        last = {user: offset for offset, user in enumerate(topic[: kafka.offsets.get(part.tp, 0)])}
        for user, offset in last.items():
            state = kafka.durable[part.tp].load(user)
            assert state is not None
            assert state.offset >= offset
