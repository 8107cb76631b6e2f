"""Promises of stream.dispatch: who is due gets a list, the oldest first, and what is not published stays owed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaConnectionError, KafkaError
from partitions import TOPIC, Record, like, likes, record_of, result, running

from mtgr.requests import ListOutcome, ListRefusal, ListRequest
from schemas.lists import RecommendationList
from stream import dispatch
from stream.dead_letters import DeadLetterGuard
from stream.dispatch import Dispatcher
from stream.errors import Fatal
from stream.observability import Metrics
from stream.outgoing import OutgoingList
from stream.partition import Partition, Phase
from stream.triggers import TriggerRules


@pytest.fixture(autouse=True)
def _short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_PUBLISH_PAUSE_SECONDS", 0.001)


class Gate:
    """Lets calls through while it is open, and tells how many have come."""

    def __init__(self) -> None:
        self.calls = 0
        self.open = True
        self._changed = asyncio.Condition()

    async def through(self) -> None:
        self.calls += 1
        async with self._changed:
            self._changed.notify_all()
            await self._changed.wait_for(lambda: self.open)

    async def set(self, is_open: bool) -> None:
        async with self._changed:
            self.open = is_open
            self._changed.notify_all()

    async def reached(self, calls: int) -> None:
        async with asyncio.timeout(20), self._changed:
            await self._changed.wait_for(lambda: self.calls >= calls)


@dataclass
class World:
    """A dispatcher between a generator, a lists topic and an events topic that do as they are told."""

    partitions: dict[TopicPartition, Partition]
    max_users: int = 64
    max_batches: int = 2
    patience: float = 20
    window: int = 1_000
    at_commit: bool = False
    refused: set[str] = field(default_factory=set)
    publish_errors: Iterator[Exception | None] = field(default_factory=lambda: iter(()))
    records: dict[tuple[TopicPartition, int], Record] = field(default_factory=dict)
    batches: list[list[str]] = field(default_factory=list)
    lists: list[OutgoingList] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.generating, self.publishing, self.reading = Gate(), Gate(), Gate()
        self.metrics = Metrics()
        self._listed = asyncio.Condition()
        self.under_way = 0
        self.most_under_way = 0
        self.dispatcher = Dispatcher(
            self.partitions,
            self,  # type: ignore[arg-type]
            self,  # type: ignore[arg-type]
            self.metrics,
            DeadLetterGuard("lists", self.window, 0.5),
            self.read_record,
            max_users=self.max_users,
            max_batches=self.max_batches,
            patience_seconds=self.patience,
        )

    async def recommend(self, requests: Sequence[ListRequest]) -> list[ListOutcome]:
        self.batches.append([request.user_id for request in requests])
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await self.generating.through()
        finally:
            self.under_way -= 1
        return [
            ListRefusal("RequestRefused", "too long") if one.user_id in self.refused else result(one)
            for one in requests
        ]

    async def publish(self, lists: Sequence[OutgoingList]) -> bool:
        await self.publishing.through()
        error = next(self.publish_errors, None)
        if error is not None:
            raise error
        async with self._listed:
            self.lists.extend(lists)
            self._listed.notify_all()
        return not self.at_commit

    async def read_record(self, tp: TopicPartition, offset: int) -> Any | None:
        await self.reading.through()
        return self.records.get((tp, offset))

    @property
    def values(self) -> list[RecommendationList]:
        return [item.value for item in self.lists]

    async def listed(self, count: int) -> list[RecommendationList]:
        """The lists published, as soon as there are so many."""
        async with asyncio.timeout(20), self._listed:
            await self._listed.wait_for(lambda: len(self.lists) >= count)
        return self.values

    async def idle(self, *partitions: Partition) -> None:
        """Return once no list of these partitions is being made."""
        async with asyncio.timeout(20):
            await asyncio.gather(*(partition.idle.wait() for partition in partitions))

    @asynccontextmanager
    async def serving(self, *, until_fatal: bool = False) -> AsyncIterator[asyncio.Task[None]]:
        task = asyncio.create_task(self.dispatcher.run())
        try:
            yield task
            if task.done() and not until_fatal:
                task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def world(*partitions: Partition, **fields: Any) -> World:
    return World({partition.tp: partition for partition in partitions}, **fields)


def ago(seconds: float) -> float:
    return time.monotonic() - seconds


async def fatal(task: asyncio.Task[None]) -> Fatal:
    """What the dispatcher stopped with."""
    async with asyncio.timeout(20):
        await asyncio.wait({task})
    error: BaseException | None = task.exception()
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, Fatal)
    return error


async def test_one_batch_takes_the_oldest_of_all_partitions() -> None:
    """Users of several partitions share a batch, those with the oldest deadlines first, and no batch is too large."""
    first, second = running(0), running(1)
    arrivals = [(first, "a"), (second, "b"), (second, "c"), (first, "d"), (first, "e")]
    for offset, (partition, user) in enumerate(arrivals):
        partition.fold(likes([user], offset), ago(9 - offset))
    w = world(first, second, max_users=3, max_batches=1)
    async with w.serving():
        await w.listed(5)
    assert w.batches == [["a", "b", "c"], ["d", "e"]]


async def test_every_list_says_which_event_it_was_due_after() -> None:
    """A list is published with its own user's event, partition, videos and trace."""
    first, second = running(0), running(1)
    first.fold([record_of(like("a", "e1"), 4, headers=(("traceparent", b"00-1"),))], ago(1))
    second.fold([record_of(like("b", "e2"), 5)], ago(1))
    w = world(first, second)
    async with w.serving():
        await w.listed(2)
        await w.idle(first, second)
    made = {item.value.user_id: item for item in w.lists}
    assert (made["a"].value.trigger.partition, made["a"].value.trigger.offset) == (0, 4)
    assert (made["b"].value.trigger.partition, made["b"].value.trigger.offset) == (1, 5)
    assert (made["a"].traceparent, made["b"].traceparent) == (b"00-1", None)
    assert made["a"].value.items[0].video_id == "a-0"
    assert first.owed == second.owed == 0
    assert w.metrics.registry.get_sample_value("mtgr_lists_total") == 2
    assert w.metrics.registry.get_sample_value("mtgr_cached_tokens_total") == 4


async def test_no_more_batches_are_under_way_than_allowed() -> None:
    """The generator has max_batches batches at once, no more and, while there is work, no fewer."""
    partition = running()
    partition.fold(likes([f"u{number}" for number in range(10)]), ago(1))
    w = world(partition, max_users=2, max_batches=3)
    await w.generating.set(False)
    async with w.serving():
        await w.generating.reached(3)
        assert (len(w.batches), w.under_way) == (3, 3)
        await w.generating.set(True)
        await w.listed(10)
    assert w.most_under_way == 3
    assert len(w.batches) == 5


async def test_a_user_is_never_in_two_batches_at_once() -> None:
    """Events that come while a user's list is made wait for the list after it."""
    partition = running()
    partition.fold(likes(["a"]), ago(1))
    w = world(partition)
    await w.generating.set(False)
    async with w.serving():
        await w.generating.reached(1)
        partition.fold(likes(["a", "b"], 1), ago(1))
        w.dispatcher.wake()
        await w.generating.reached(2)
        assert w.batches == [["a"], ["b"]]
        await w.generating.set(True)
        made = await w.listed(3)
    assert w.batches == [["a"], ["b"], ["a"]]
    assert [one.trigger.offset for one in made if one.user_id == "a"] == [0, 1]


def sample(w: World, name: str) -> float:
    return w.metrics.registry.get_sample_value(f"mtgr_{name}") or 0.0


async def test_the_window_stretches_under_load_and_shrinks_after_it() -> None:
    """While the generator is busy, a list serves all that has come for its user meanwhile, and metrics tell how many
    events and how late; when it is free again, every event has its list at once."""
    partition = running()
    w = world(partition, max_batches=1)
    await w.generating.set(False)
    async with w.serving():
        partition.fold(likes(["first"]), ago(30))
        w.dispatcher.wake()
        await w.generating.reached(1)
        offset = 1
        for seconds in range(20, 0, -1):
            partition.fold(likes(["a", "b"], offset), ago(seconds))
            offset += 2
        w.dispatcher.wake()
        await w.generating.set(True)
        await w.listed(3)
        await w.idle(partition)
        assert w.batches == [["first"], ["a", "b"]]
        assert sample(w, "list_events_sum") == 1 + 2 * 20
        assert 30 + 2 * 20 <= sample(w, "overdue_seconds_sum") < 30 + 2 * 20 + 10
        for number in range(5):
            partition.fold(likes(["a"], offset + number), time.monotonic())
            w.dispatcher.wake()
            await w.listed(4 + number)
            await w.idle(partition)
        assert sample(w, "list_events_sum") == 1 + 2 * 20 + 5
        assert sample(w, "overdue_seconds_sum") < 30 + 2 * 20 + 15
    assert w.metrics.registry.get_sample_value("mtgr_list_requests_total", {"history": "session"}) == 8


async def test_oldest_deadlines_come_first_however_long_the_overload() -> None:
    """With more users than the generator can serve, each round serves those who have waited longest: nobody starves."""
    first, second = running(0), running(1)
    w = world(first, second, max_users=2, max_batches=1)
    users = [f"u{number}" for number in range(6)]
    offset = 0
    await w.generating.set(False)
    async with w.serving():
        for round_number in range(9):
            for number, user in enumerate(users):  # those whose lists are owed have more events all the while
                part = (first, second)[number % 2]
                part.fold(likes([user], offset), ago(1_000 - 10 * round_number - number))
                offset += 1
            w.dispatcher.wake()
            await w.generating.reached(round_number + 1)
            await w.generating.set(True)
            await w.idle(first, second) if round_number == 8 else await w.listed(2 * (round_number + 1))
            await w.generating.set(False)
        await w.generating.set(True)
        await w.listed(20)
    served = [user for batch in w.batches[1:] for user in batch]
    # between two lists of one user every other one had a turn
    for start in range(len(served) - 5):
        assert len(set(served[start : start + 5])) >= 5


async def test_a_deadline_needs_no_further_event() -> None:
    """A user who went quiet is served when the quiet period ends, though nothing happens by then."""
    partition = running(rules=TriggerRules(1, 0.05, 60.0))
    w = world(partition)
    async with w.serving():
        partition.fold(likes(["a"]), time.monotonic())
        w.dispatcher.wake()
        await w.listed(1)


async def test_a_refused_list_is_buried_with_its_record() -> None:
    """A user whom the model refuses ends in the dead letters, with the event, and is owed nothing until the next."""
    partition = running()
    source = record_of(like("a", "e"), 7)
    partition.fold([source, *likes(["b"], 8)], ago(1))
    w = world(partition, refused={"a"}, records={(partition.tp, 7): source})
    async with w.serving():
        await w.listed(1)
        await w.idle(partition)
    assert [one.user_id for one in w.values] == ["b"]
    work = partition.take_work()
    assert work is not None
    (dead,) = work.dead
    assert (dead.key, dead.value, dead.letter.stage) == (b"a", source.value, "generate")
    assert (dead.letter.exception_class, dead.letter.message) == ("RequestRefused", "too long")
    assert partition.owed == 0
    partition.fold(likes(["a"], 9), ago(1))
    assert partition.owed == 1


async def test_a_refusal_holds_up_nobody() -> None:
    """The lists of the others are published before the refused user's record is looked for."""
    partition = running()
    partition.fold(likes(["a", "b"]), ago(1))
    w = world(partition, refused={"a"})
    await w.reading.set(False)
    async with w.serving():
        made = await w.listed(1)
        assert made[0].user_id == "b"
        await w.reading.reached(1)
        assert partition.in_flight == 1
        await w.reading.set(True)
        await w.idle(partition)
    work = partition.take_work()
    assert work is not None
    assert [dead.value for dead in work.dead] == [None]  # Kafka has lost the record; its place is named


async def test_too_many_refusals_stop_the_daemon() -> None:
    """A model that refuses everybody does not turn a topic of events into one of dead letters."""
    partition = running()
    users = [f"u{number}" for number in range(20)]
    partition.fold(likes(users), ago(1))
    w = world(partition, refused=set(users), window=10, max_users=4)
    async with w.serving(until_fatal=True) as task:
        error = await fatal(task)
        assert "lists are dead letters" in str(error)


async def test_a_few_refusals_of_a_backlog_do_not() -> None:
    """Refusals are judged against the lists made, however long ago their events were read."""
    partition = running()
    users = [f"u{number}" for number in range(100)]
    partition.fold(likes(users), ago(1))
    w = world(partition, refused=set(users[::5]), window=10, max_users=50)
    async with w.serving():
        await w.listed(80)
        await w.idle(partition)


@pytest.mark.parametrize("error", [KafkaConnectionError(), KafkaError("no"), OSError("no route")])
async def test_lists_that_were_not_published_are_made_again(error: Exception) -> None:
    """A list that Kafka did not take stays owed, and comes later under the same id."""
    partition = running()
    partition.fold(likes(["a", "b"]), ago(1))
    w = world(partition, publish_errors=iter([error, error]))
    async with w.serving():
        made = await w.listed(2)
        await w.idle(partition)
    assert {one.user_id for one in made} == {"a", "b"}
    assert len(w.batches) == 3
    assert partition.owed == 0
    assert w.metrics.registry.get_sample_value("mtgr_lists_total") == 2


async def test_a_failed_publication_keeps_what_came_since() -> None:
    """The list made after a failure serves the events that came during it, too."""
    partition = running()
    partition.fold(likes(["a"]), ago(1))
    w = world(partition, publish_errors=iter([KafkaError("no")]))
    await w.publishing.set(False)
    async with w.serving():
        await w.publishing.reached(1)
        partition.fold(likes(["a"], 1), ago(1))
        await w.publishing.set(True)
        (made,) = await w.listed(1)
        await w.idle(partition)
    assert made.trigger.offset == 1
    assert partition.owed == 0


async def test_a_lists_topic_that_never_answers_stops_the_daemon() -> None:
    """Lists that cannot be published for longer than the set time are no silent loss: the daemon says so and stops."""
    partition = running()
    partition.fold(likes(["a"]), ago(1))
    w = world(partition, publish_errors=repeat(KafkaError("not authorized")), patience=0.05)
    async with w.serving(until_fatal=True) as task:
        error = await fatal(task)
        assert "lists could not be published" in str(error)
        assert "not authorized" in str(error)
    assert partition.owed == 1


async def test_lists_that_are_published_by_the_commit_go_with_their_states() -> None:
    """Where the commit publishes, a list and the state that says that it was served are taken by the same commit."""
    partition = running()
    partition.fold(likes(["a", "b"]), ago(1))
    w = world(partition, at_commit=True)
    async with w.serving():
        await w.idle(partition)
    work = partition.take_work()
    assert work is not None
    assert [item.value.user_id for item in work.lists] == ["a", "b"]
    assert [state.unserved for state in work.states] == [0, 0]
    assert w.metrics.registry.get_sample_value("mtgr_lists_total") == 0
    assert partition.take_work() is not None  # the offset alone: it is not committed yet
    assert work.lists == w.lists


async def test_failures_with_successes_between_are_no_outage() -> None:
    """The time that is granted to Kafka begins anew with every list that was published."""
    partition = running()
    w = world(partition, publish_errors=iter([KafkaError("1"), None, KafkaError("2"), None]), patience=0.05)
    async with w.serving():
        for number in range(2):
            partition.fold(likes(["a"], number), ago(1))
            w.dispatcher.wake()
            await w.listed(number + 1)
            await asyncio.sleep(w.patience)
    assert len(w.lists) == 2


async def test_results_for_a_closed_partition_are_dropped() -> None:
    """What comes back for a partition that another daemon owns by now is neither published nor settled."""
    lost, kept = running(0), running(1)
    lost.fold(likes(["a"]), ago(2))
    kept.fold(likes(["b"]), ago(1))
    w = world(lost, kept)
    await w.generating.set(False)
    async with w.serving():
        await w.generating.reached(1)
        del w.partitions[lost.tp]
        lost.close()
        await w.generating.set(True)
        await w.listed(1)
        await w.idle(kept)
    assert [one.user_id for one in w.values] == ["b"]
    assert lost.cache.get("a").unserved == 1


async def test_a_partition_closed_during_publication_is_left_alone() -> None:
    """A list that was published while its partition was lost is not settled here: the new owner may make it again."""
    partition = running()
    partition.fold(likes(["a"]), ago(1))
    w = world(partition)
    await w.publishing.set(False)
    async with w.serving():
        await w.publishing.reached(1)
        del w.partitions[partition.tp]
        partition.close()
        await w.publishing.set(True)
        await w.listed(1)
        w.partitions[TopicPartition(TOPIC, 1)] = other = running(1)
        other.fold(likes(["b"]), ago(1))
        w.dispatcher.wake()
        await w.listed(2)
    assert partition.cache.get("a").unserved == 1


async def test_a_leaving_partition_is_finished_but_not_begun() -> None:
    """On a hand-over the lists under way are published and settled, and no new one is begun."""
    partition = running()
    partition.fold(likes(["a"]), ago(1))
    w = world(partition)
    await w.generating.set(False)
    async with w.serving():
        await w.generating.reached(1)
        partition.fold(likes(["b"], 1), ago(1))
        partition.phase = Phase.LEAVING
        await w.generating.set(True)
        await w.idle(partition)
        for _ in range(10):
            w.dispatcher.wake()
            await asyncio.sleep(0)
    assert [one.user_id for one in w.values] == ["a"]
    assert partition.owed == 1
    assert partition.cache.get("a").unserved == 0


async def test_hurry_serves_everyone_and_drained_waits_for_it() -> None:
    """On a stop nobody's quiet period is waited for: all who are owed get their lists, then the drain is over."""
    first, second = (running(number, rules=TriggerRules(5, 600.0, 3_600.0)) for number in range(2))
    first.fold(likes(["a", "b"]), time.monotonic())
    second.fold(likes(["c"]), time.monotonic())
    w = world(first, second, max_users=1)
    async with w.serving():
        await asyncio.sleep(0)
        assert w.lists == []
        w.dispatcher.hurry()
        async with asyncio.timeout(20):
            await w.dispatcher.drained()
        assert len(w.lists) == 3
    assert first.owed == second.owed == 0


async def test_hurry_holds_for_what_is_owed_later() -> None:
    """Events that came during a list are served in a hurry as well, once that list is done."""
    partition = running(rules=TriggerRules(1, 600.0, 3_600.0))
    partition.fold(likes(["a"]), time.monotonic())
    w = world(partition)
    await w.generating.set(False)
    async with w.serving():
        w.dispatcher.hurry()
        await w.generating.reached(1)
        partition.fold(likes(["a"], 1), time.monotonic())
        await w.generating.set(True)
        async with asyncio.timeout(20):
            await w.dispatcher.drained()
    assert [one.trigger.offset for one in w.values] == [0, 1]


async def test_a_dead_generator_ends_the_dispatcher() -> None:
    """What the supervision gives up on reaches the daemon."""
    partition = running()
    partition.fold(likes(["a"]), ago(1))
    w = world(partition)

    async def give_up(requests: Sequence[ListRequest]) -> list[ListOutcome]:
        raise Fatal("the engine failed 6 times in a row")

    w.recommend = give_up  # type: ignore[method-assign]
    async with w.serving(until_fatal=True) as task:
        assert "6 times" in str(await fatal(task))


async def test_cancelling_leaves_what_is_under_way_owed() -> None:
    """A stop in the middle of a batch settles nothing: the next start owes the same lists."""
    partition = running()
    partition.fold(likes(["a", "b"]), ago(1))
    w = world(partition)
    await w.generating.set(False)
    async with w.serving():
        await w.generating.reached(1)
    work = partition.take_work()
    assert work is not None
    partition.store.apply(work.changes, 1)
    assert running(store=partition.store).owed == 2
    assert w.lists == []
