"""Promises of stream.partition: every record is folded or buried, and a list is owed until it is settled."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pytest
from dict_store import DictStore
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from partitions import (
    MAX_EVENTS,
    Record,
    like,
    likes,
    partition_settings,
    profile,
    record_of,
    result,
    running,
)
from strategies import events, identifiers

from mtgr.attributes import pack_attributes, unpack_attributes
from mtgr.history import RECORD_DTYPE, History, event_digest
from mtgr.requests import ListResult
from schemas.codecs import encode_event
from schemas.dead_letters import REPLAYED_HEADER
from schemas.events import Event, Forget
from schemas.lists import RecommendationList
from stream.dead_letters import DeadRecord
from stream.partition import CommitWork, Partition, PendingList, Phase
from stream.triggers import TriggerRules

BLOCK, CAPACITY = 16, 32
MESSAGEPACK = (("content-type", b"application/msgpack"),)
EVENT = like("u", "e")
FIELDS = {"type": "like", "event_id": "e", "user_id": "u", "video_id": "v", "timestamp_ms": 0}


def json(**fields: object) -> bytes:
    return msgspec.json.encode(FIELDS | fields)


def take_all(partition: Partition, now: float = 1e9) -> list[PendingList]:
    taken = []
    while (pending := partition.take_due(now)) is not None:
        taken.append(pending)
    return taken


def commit(partition: Partition) -> CommitWork | None:
    work = partition.take_work()
    if work is not None:
        partition.store.apply(work.changes, partition.store.checkpoint + len(work.changes))
        partition.committed(work)
    return work


# ---- folding


BAD_RECORDS: list[tuple[dict[str, Any], str, str, str]] = [
    ({"value": None}, "decode", "MalformedEvent", "null"),
    ({"value": b""}, "decode", "MalformedEvent", "empty"),
    ({"value": b"{"}, "decode", "MalformedEvent", "truncated"),
    ({"value": b"\xff\xfe\x00"}, "decode", "MalformedEvent", "malformed"),
    ({"headers": MESSAGEPACK}, "validate", "InvalidEvent", "the value"),
    ({"headers": (("content-type", b"text/plain"),)}, "decode", "UnsupportedContentType", "text/plain"),
    ({"value": json(video_id="x" * 2_000)}, "decode", "OversizedEvent", "stream.max_event_bytes"),
    ({"value": json(type="dislike")}, "validate", "InvalidEvent", "type"),
    ({"value": json(timestamp_ms="noon")}, "validate", "InvalidEvent", "timestamp_ms"),
    ({"value": json(timestamp_ms=-1)}, "validate", "InvalidEvent", "timestamp_ms"),
    ({"value": json(user_id="")}, "validate", "InvalidEvent", "user_id"),
    ({"value": json(type="watch", watch_seconds=1e9)}, "validate", "InvalidEvent", "watch_seconds"),
    ({"value": json(type="watch", watch_seconds=5)}, "validate", "InvalidEvent", "watch_ratio"),
    ({"value": json(schema_version=2)}, "validate", "InvalidEvent", "schema_version"),
    ({"value": b"[1, 2]"}, "validate", "InvalidEvent", "the value"),
    ({"key": b"someone else"}, "validate", "KeyMismatch", "user_id 'u'"),
    ({"key": None}, "validate", "KeyMismatch", "no key"),
]


@pytest.mark.parametrize(("bad", "stage", "error", "message"), BAD_RECORDS)
def test_a_bad_record_is_buried_and_the_rest_goes_on(
    bad: dict[str, Any], stage: str, error: str, message: str
) -> None:
    """Whatever is wrong with a record, it becomes a dead letter that names the fault, and later ones are folded."""
    partition = running()
    records = [
        record_of(like("u", "before"), 4),
        record_of(EVENT, 5, **bad),
        record_of(like("u", "after"), 6),
    ]
    counts = partition.fold(records, 0.0)
    assert counts.events == {"like": 2}
    assert counts.dead == {stage: 1}
    work = partition.take_work()
    assert work is not None
    assert work.offset == 7
    (dead,) = work.dead
    assert (dead.key, dead.value) == (records[1].key, records[1].value)
    assert (dead.letter.offset, dead.letter.stage, dead.letter.exception_class) == (5, stage, error)
    assert message in dead.letter.message
    assert partition.cache.get("u").event_id == "after"


@given(
    st.binary(max_size=60) | st.sampled_from([json(), msgspec.msgpack.encode(FIELDS)]),
    st.none() | st.binary(max_size=5),
    st.lists(
        st.tuples(
            st.sampled_from(["content-type", "traceparent", "x"]),
            st.none()
            | st.binary(max_size=10)
            | st.sampled_from([b"application/msgpack", b"application/json; charset=utf-8"]),
        ),
        max_size=3,
    ),
)
def test_no_record_stops_the_stream(
    value: bytes, key: bytes | None, headers: list[tuple[str, bytes | None]]
) -> None:
    """Any bytes at all are folded or buried: nothing that a producer writes raises."""
    partition = running()
    counts = partition.fold([Record(0, key, value, tuple(headers))], 0.0)
    assert sum(counts.events.values()) + sum(counts.dead.values()) == 1
    work = partition.take_work()
    assert work is not None
    assert len(work.dead) == sum(counts.dead.values())


@given(events(), st.sampled_from(["application/json", "application/msgpack"]))
def test_a_valid_event_is_folded_in_either_format(event: Any, content_type: Any) -> None:
    """Any valid event becomes the user's last one, and the user is owed a list that names it."""
    partition = running(max_event_bytes=1 << 20)
    record = record_of(
        event,
        9,
        value=encode_event(event, content_type),
        headers=(("content-type", content_type.encode()), ("traceparent", b"00-abc")),
    )
    partition.fold([record], 0.0)
    (pending,) = take_all(partition)
    assert (pending.request.user_id, pending.request.count) == (event.user_id, 3)
    assert pending.session_id == event.session_id
    assert pending.traceparent == b"00-abc"
    assert pending.since_ms == record.timestamp
    trigger = pending.trigger
    assert (trigger.topic, trigger.partition, trigger.offset) == ("user-events", 0, 9)
    assert (trigger.event_id, trigger.timestamp_ms) == (event.event_id, event.timestamp_ms)
    history = History.from_bytes(pending.request.records, pending.request.videos)
    assert history.video_ids == [event.video_id]


def test_an_oversized_record_is_not_even_decoded() -> None:
    """The limit is on the bytes of the value, exactly, whatever they hold."""
    fits = record_of(like("u", "e1"), 0)
    assert fits.value is not None
    partition = running(max_event_bytes=len(fits.value))
    counts = partition.fold([fits, Record(1, b"u", b"x" * (len(fits.value) + 1))], 0.0)
    assert (counts.events, counts.dead) == ({"like": 1}, {"decode": 1})


def test_duplicates_are_counted_and_change_nothing() -> None:
    """An event that was sent twice is in the sequence once, costs no second list, and is still an event read."""
    partition = running()
    partition.fold([record_of(EVENT, 0)], 0.0)
    (pending,) = take_all(partition)
    partition.settle(pending)
    commit(partition)
    counts = partition.fold([record_of(EVENT, 1), record_of(EVENT, 2)], 0.0)
    assert (counts.duplicates, counts.events) == (2, {"like": 2})
    assert partition.owed == 0
    work = partition.take_work()
    assert work is not None
    assert (work.offset, work.changes) == (3, [])


def test_records_read_again_are_skipped() -> None:
    """Records that the state includes already are neither folded nor counted as duplicates, nor owed a list."""
    records = [record_of(like("u", f"e{offset}"), offset) for offset in range(5)]
    partition = running()
    partition.fold(records, 0.0)
    (pending,) = take_all(partition)
    partition.settle(pending)
    commit(partition)
    again = running(store=partition.store)
    counts = again.fold(records, 0.0)
    assert counts.duplicates == 0
    assert again.owed == 0
    assert len(again.cache.get("u")) == 5


def test_a_profile_goes_into_the_next_list_and_asks_for_none() -> None:
    """A profile makes nobody due; the list after the next event is made with it, by the strategy that is set."""
    partition = running(strategy="slate")
    counts = partition.fold([record_of(profile("u", 5, age=30), 0)], 0.0)
    assert (counts.events, counts.duplicates) == ({"profile": 1}, 0)
    assert (partition.owed, partition.take_due(9.0)) == (0, None)
    profiles = [profile("u", 4, age=29), profile("u", 5, age=30), profile("u", 6, age=31)]
    events = [like("u", "e"), *profiles]
    counts = partition.fold([record_of(event, offset) for offset, event in enumerate(events, 1)], 0.0)
    assert (counts.events, counts.duplicates) == ({"like": 1, "profile": 3}, 2)
    pending = partition.take_due(9.0)
    assert pending is not None
    assert pending.request.profile == pack_attributes({"age": 31.0})
    assert pending.request.strategy == "slate"
    assert pending.trigger.offset == 1, "the list follows the event, not the profile"
    assert partition.make_list(pending, result(pending.request), 0).strategy == "slate"


def test_the_last_content_type_counts() -> None:
    """Of two content-type headers the one added last is believed."""
    partition = running()
    headers = (("content-type", b"application/json"), *MESSAGEPACK)
    value = encode_event(EVENT, "application/msgpack")
    assert partition.fold([record_of(EVENT, 0, value=value, headers=headers)], 0.0).events == {"like": 1}


# ---- lists


def test_a_list_says_what_it_was_made_from() -> None:
    """The wire form carries user, session, trigger, model, ranks from 1, scores and the time since the arrival."""
    partition = running(2)
    partition.fold([record_of(like("u", "e", session_id="s", timestamp_ms=7), 11, timestamp=1_000)], 0.0)
    (pending,) = take_all(partition)
    made = partition.make_list(pending, ListResult(["a", "b"], [-0.5, -1.5], 1, 0), now_ms=1_250)
    assert isinstance(made, RecommendationList)
    assert (made.user_id, made.session_id, made.strategy) == ("u", "s", "topk")
    assert [(item.video_id, item.score, item.rank) for item in made.items] == [("a", -0.5, 1), ("b", -1.5, 2)]
    assert (made.trigger.partition, made.trigger.offset, made.trigger.event_id) == (2, 11, "e")
    assert (made.generated_at_ms, made.latency_ms) == (1_250, 250.0)
    assert made.model == partition_settings().model


@given(st.integers(-(10**6), 10**6))
def test_latency_is_never_negative(ahead: int) -> None:
    """A producer whose clock runs ahead makes latencies of zero, not lists that break their own schema."""
    partition = running()
    partition.fold([record_of(EVENT, 0, timestamp=1_000_000 + ahead)], 0.0)
    (pending,) = take_all(partition)
    assert partition.make_list(pending, result(pending.request), 1_000_000).latency_ms == max(-ahead, 0)


@given(identifiers, identifiers)
def test_a_list_made_again_has_the_same_id(user_id: str, event_id: str) -> None:
    """A list that is made twice for the same event, before and after a crash, can be deduplicated by its id."""
    ids = set()
    for now_ms in (1_000, 2_000):
        partition = running(max_event_bytes=10_000)
        partition.fold([record_of(like(user_id, event_id), 0)], 0.0)
        (pending,) = take_all(partition)
        ids.add(partition.make_list(pending, result(pending.request), now_ms).list_id)
    assert len(ids) == 1


def test_events_during_a_list_are_owed_the_next() -> None:
    """What arrives while a list is made is not served by it, but by the next, whose latency counts from there."""
    partition = running()
    partition.fold([record_of(like("u", "e0"), 0, timestamp=100)], 0.0)
    (first,) = take_all(partition)
    partition.fold([record_of(like("u", "e1"), 1, timestamp=200)], 0.0)
    assert take_all(partition) == []
    partition.settle(first)
    assert partition.owed == 1
    (second,) = take_all(partition)
    assert (second.since_ms, second.trigger.event_id) == (200, "e1")
    assert len(History.from_bytes(first.request.records, first.request.videos)) == 1


def test_a_list_that_was_withdrawn_is_due_again_with_everything_since() -> None:
    """A list that could not be made is owed at once, for the first arrival it should have served."""
    partition = running(rules=TriggerRules(1, 100.0, 1_000.0))
    partition.fold([record_of(like("u", "e0"), 0, timestamp=100)], 0.0)
    (first,) = take_all(partition, 200.0)
    partition.fold([record_of(like("u", "e1"), 1, timestamp=200)], 200.0)
    partition.withdraw(first)
    (second,) = take_all(partition, 200.0)
    assert (second.since_ms, second.trigger.event_id) == (100, "e1")
    partition.settle(second)
    assert partition.owed == 0
    assert partition.cache.get("u").unserved == 0


def test_idle_means_no_list_is_being_made() -> None:
    """A partition is idle exactly while none of its lists is under way, so that a hand-over can wait for that."""
    partition = running()
    assert partition.idle.is_set()
    partition.fold(likes(["a", "b"]), 0.0)
    first, second = take_all(partition)
    assert (partition.in_flight, partition.idle.is_set()) == (2, False)
    partition.settle(first)
    assert not partition.idle.is_set()
    partition.withdraw(second)
    assert (partition.in_flight, partition.idle.is_set()) == (0, True)


def test_a_sequence_kept_for_a_longer_model_is_cut_for_its_list() -> None:
    """After a change to a shorter model no request is longer than the model takes, and the store follows."""
    store = DictStore()
    long = running(store=store, max_events=64)
    long.fold([record_of(like("u", f"e{offset}"), offset) for offset in range(80)], 0.0)
    commit(long)
    short = running(store=store, max_events=16)
    (pending,) = take_all(short)
    assert len(History.from_bytes(pending.request.records, pending.request.videos)) <= CAPACITY
    short.settle(pending)
    commit(short)
    reloaded = store.load("u")
    assert reloaded is not None
    assert len(reloaded) <= CAPACITY
    assert reloaded.event_id == "e79"


# ---- commits


def test_nothing_new_is_no_work() -> None:
    """An idle partition costs the commit cycle nothing."""
    partition = running()
    assert partition.take_work() is None
    partition.fold(likes(["a"]), 0.0)
    assert commit(partition) is not None
    assert partition.take_work() is None


def test_bytes_in_flight_are_those_not_committed() -> None:
    """Uncommitted bytes grow with every record read, dead ones too, and shrink by what a commit covered."""
    partition = running()
    first = [*likes(["a", "b"]), Record(2, b"k", b"rubbish"), Record(3, b"k", None)]
    partition.fold(first, 0.0)
    nbytes = sum(len(record.value or b"") for record in first)
    assert partition.uncommitted_bytes == nbytes
    work = partition.take_work()
    assert work is not None
    more = likes(["c"], 4)
    partition.fold(more, 0.0)
    assert partition.uncommitted_bytes == nbytes + len(more[0].value or b"")
    partition.committed(work)
    assert partition.uncommitted_bytes == len(more[0].value or b"")
    commit(partition)
    assert partition.uncommitted_bytes == 0


def test_dead_letters_keep_their_order() -> None:
    """Dead letters are handed to the commit in the order of their records."""
    partition = running()
    partition.fold([Record(offset, b"k", b"rubbish") for offset in range(20)], 0.0)
    work = partition.take_work()
    assert work is not None
    assert [dead.letter.offset for dead in work.dead] == list(range(20))


def test_a_list_owed_from_before_is_settled_for_good_without_a_new_event() -> None:
    """After a restart in a quiet topic the lists still owed are made once, not again at every later restart."""
    partition = running()
    partition.fold(likes(["a", "b"]), 0.0)
    commit(partition)
    restarted = running(store=partition.store)
    assert restarted.owed == 2
    first, second = take_all(restarted)
    restarted.settle(first)
    restarted.bury(DeadRecord.of_trigger(second.trigger, "b", None, "RequestRefused", "too long"))
    restarted.settle(second)
    work = commit(restarted)
    assert work is not None
    assert work.offset is None
    assert len(work.dead) == 1
    assert restarted.take_work() is None
    assert running(store=partition.store).owed == 0


def test_closing_closes_the_store() -> None:
    """A partition that is given up lets go of its files."""
    store = DictStore()
    partition = running(store=store)
    partition.close()
    assert store.closed
    assert partition.phase is Phase.CLOSED


# ---- the whole life, with crashes at any point


USERS = ["a", "b", "ü"]


class LifeMachine(RuleBasedStateMachine):
    """A partition that is read, served, committed and killed in any order, against the pure fold of its topic."""

    @initialize(cache_bytes=st.sampled_from([1, 3_000, 1 << 20]), min_events=st.integers(1, 3))
    def begin(self, cache_bytes: int, min_events: int) -> None:
        self.fields: dict[str, Any] = {
            "cache_bytes": cache_bytes,
            "rules": TriggerRules(min_events, 1.0, 5.0),
        }
        self.topic: list[Record] = []
        self.known: dict[str, list[str]] = {user: [] for user in USERS}  # every event id, for duplicates
        self.kept: dict[str, dict[int, list[str]]] = {user: {} for user in USERS}  # by offset, the pure fold
        self.store = DictStore()  # what is durable
        self.committed = 0
        self.profiles: dict[str, dict[int, int]] = {user: {} for user in USERS}  # offset to timestamp
        self.now = 0.0
        self.outcomes: dict[str, int] = {}  # the offset that the last list or dead letter was made for
        self.dead: list[int] = []
        self._start()

    def _start(self) -> None:
        self.partition = running(store=DictStore(self.store.values), **self.fields)
        self.next = self.committed
        self.pending: list[PendingList] = []
        self.work: CommitWork | None = None
        self.refused: list[tuple[str, int]] = []  # refusals whose dead letters are not durable yet

    def _append(self, user: str, event_id: str) -> None:
        offset = len(self.topic)
        self.topic.append(record_of(like(user, event_id, video_id=f"video of {event_id}"), offset))
        kept = list(self.kept[user][max(self.kept[user])]) if self.kept[user] else []
        if event_id not in kept:
            kept.append(event_id)
            if len(kept) > CAPACITY:
                del kept[: (len(kept) - MAX_EVENTS) // BLOCK * BLOCK]
            self.kept[user][offset] = kept
            self.known[user].append(event_id)

    @rule(user=st.sampled_from(USERS), count=st.integers(1, 20))
    def produce(self, user: str, count: int) -> None:
        for _ in range(count):
            self._append(user, f"e{len(self.topic)}")

    @rule(user=st.sampled_from(USERS), back=st.integers(1, 40))
    def produce_duplicate(self, user: str, back: int) -> None:
        if self.known[user]:
            self._append(user, self.known[user][-min(back, len(self.known[user]))])

    @rule(user=st.sampled_from(USERS), timestamp_ms=st.integers(0, 4))
    def produce_profile(self, user: str, timestamp_ms: int) -> None:
        offset = len(self.topic)
        self.profiles[user][offset] = timestamp_ms
        self.topic.append(record_of(profile(user, timestamp_ms, offset=offset), offset))

    @rule()
    def produce_rubbish(self) -> None:
        self.topic.append(Record(len(self.topic), b"a", b"rubbish"))

    @rule(count=st.integers(1, 40), seconds=st.integers(0, 3))
    def fetch(self, count: int, seconds: int) -> None:
        self.now += seconds
        records = self.topic[self.next : self.next + count]
        self.partition.fold(records, self.now)
        self.next += len(records)

    @rule()
    def take(self) -> None:
        pending = self.partition.take_due(self.now)
        if pending is None:
            return
        user, offset = pending.request.user_id, pending.trigger.offset
        kept = self.kept[user][offset]
        history = History.from_bytes(pending.request.records, pending.request.videos)
        assert [digest.tobytes() for digest in history.records["event_digest"]] == list(
            map(event_digest, kept)
        )
        assert history.video_ids == [f"video of {event_id}" for event_id in kept]
        assert pending.trigger.event_id == kept[-1]
        assert user not in {other.request.user_id for other in self.pending}
        self._check_profile(user, pending.request.profile)
        self.pending.append(pending)

    def _check_profile(self, user: str, packed: bytes) -> None:
        """It is at least as new as what was read; what was read before a crash may be newer."""
        told = self.profiles[user]
        read = [timestamp_ms for offset, timestamp_ms in told.items() if offset < self.next]
        if packed:
            assert told[int(unpack_attributes(packed)["offset"])] >= max(read, default=0)
        else:
            assert not read

    def _finish(self, data: st.DataObject) -> PendingList:
        return self.pending.pop(data.draw(st.integers(0, len(self.pending) - 1)))

    @precondition(lambda self: self.pending)
    @rule(data=st.data(), crash=st.booleans())
    def publish(self, data: st.DataObject, crash: bool) -> None:
        pending = self._finish(data)
        self.outcomes[pending.request.user_id] = pending.trigger.offset
        if crash:
            self._start()
        else:
            self.partition.settle(pending)

    @precondition(lambda self: self.pending)
    @rule(data=st.data())
    def refuse(self, data: st.DataObject) -> None:
        pending = self._finish(data)
        user = pending.request.user_id
        self.partition.bury(DeadRecord.of_trigger(pending.trigger, user, None, "RequestRefused", "no"))
        self.partition.settle(pending)

    @precondition(lambda self: self.pending)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        self.partition.withdraw(self._finish(data))

    @precondition(lambda self: self.work is None)
    @rule()
    def begin_commit(self) -> None:
        self.work = self.partition.take_work()

    def _bury_durably(self) -> None:
        assert self.work is not None
        for dead in self.work.dead:
            self.dead.append(dead.letter.offset)
            if dead.letter.stage == "generate":
                user = str((dead.key or b"").decode())
                # a list made since may have been published before this cycle
                self.outcomes[user] = max(self.outcomes.get(user, -1), dead.letter.offset)

    @precondition(lambda self: self.work is not None)
    @rule()
    def finish_commit(self) -> None:
        assert self.work is not None
        self._bury_durably()
        for store in (self.partition.store, self.store):
            store.apply(self.work.changes, 0)
        if self.work.offset is not None:
            self.committed = self.work.offset
        self.partition.committed(self.work)
        self.work = None

    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        """The process dies; of a commit under way the dead letters and any first part of the changes came through."""
        if self.work is not None:
            self._bury_durably()
            self.store.apply(self.work.changes[: data.draw(st.integers(0, len(self.work.changes)))], 0)
        self._start()

    @precondition(lambda self: self.work is None)
    @rule()
    def hand_over(self) -> None:
        for pending in self.pending:
            self.partition.withdraw(pending)
        self.begin_commit()
        if self.work is not None:
            self.finish_commit()
        self._start()

    def teardown(self) -> None:
        """Read to the end and drain: then nothing is owed, lost or uncommitted."""
        if not hasattr(self, "partition"):
            return
        if self.work is not None:
            self.finish_commit()
        while self.next < len(self.topic):
            self.fetch(50, 0)
        self.partition.triggers.hurry()
        for pending in self.pending:
            self.partition.withdraw(pending)
        self.pending = []
        while self.partition.owed:
            self.take()
            (pending,) = self.pending
            self.pending = []
            self.outcomes[pending.request.user_id] = pending.trigger.offset
            self.partition.settle(pending)
        self.begin_commit()
        if self.work is not None:
            self.finish_commit()
        assert self.partition.uncommitted_bytes == 0
        assert self.committed == len(self.topic)
        self._start()
        assert self.partition.owed == 0
        for user in USERS:
            state = self.store.load(user)
            if self.profiles[user]:
                assert state is not None
                newest = max(self.profiles[user], key=lambda offset: (self.profiles[user][offset], offset))
                assert state.profile == pack_attributes({"offset": float(newest)})
            if not self.kept[user]:
                assert state is None or (len(state), state.unserved) == (0, 0)
                assert (state is not None) is bool(self.profiles[user])
                continue
            last = max(self.kept[user])
            assert state is not None
            history = History.from_bytes(bytes(state.records), bytes(state.videos))
            assert history.video_ids == [f"video of {event_id}" for event_id in self.kept[user][last]]
            assert state.offset == last
            assert self.outcomes[user] == last
        rubbish = {record.offset for record in self.topic if record.value == b"rubbish"}
        assert rubbish <= set(self.dead)


def test_no_crash_loses_an_event_or_an_owed_list() -> None:
    """Killed at any point, a partition ends with the pure fold of its topic and a list for every user's last event."""
    run_state_machine_as_test(
        LifeMachine, settings=settings(max_examples=120, stateful_step_count=50, deadline=None)
    )


# ---- back from the dead letters


def test_a_replayed_event_is_owed_its_list_again_though_it_is_in_the_sequence() -> None:
    """A list that the model refused is asked for once more when its event is sent back."""
    partition = running()
    partition.fold([record_of(EVENT, 0)], 0.0)
    for pending in take_all(partition):
        partition.settle(pending)
    counts = partition.fold([record_of(EVENT, 1, headers=((REPLAYED_HEADER, b"true"),))], 0.0)
    (again,) = take_all(partition)
    assert counts.duplicates == 0
    assert (again.trigger.event_id, again.trigger.offset) == ("e", 1)
    assert len(again.state) == 1


def test_a_replayed_event_that_a_later_list_serves_changes_nothing() -> None:
    """Only the last event can be owed a list again: a later one's list has been made with both."""
    partition = running()
    partition.fold([record_of(EVENT, 0), record_of(like("u", "later"), 1)], 0.0)
    for pending in take_all(partition):
        partition.settle(pending)
    counts = partition.fold([record_of(EVENT, 2, headers=((REPLAYED_HEADER, b"true"),))], 0.0)
    assert counts.duplicates == 1
    assert take_all(partition) == []


def forget(user_id: str, offset: int) -> Record:
    """The record that asks to forget a user."""
    return record_of(Forget(event_id=f"f{offset}", user_id=user_id, timestamp_ms=0), offset)


def commit_all(partition: Partition, store: DictStore) -> None:
    """One commit cycle."""
    if (work := partition.take_work()) is not None:
        store.apply(work.changes, 0)
        partition.committed(work)


def test_a_forgotten_user_leaves_nothing() -> None:
    """History, profile, owed list and all keys of the store go, other users stay, and the user counts no longer."""
    store = DictStore()
    partition = running(store=store)
    partition.fold(likes(["ada"] * 20 + ["bob"] * 20), 0.0)
    partition.fold([record_of(profile("ada", 5, city="Ulm"), 40)], 0.0)
    commit_all(partition, store)
    assert any(b"ada" in key for key in store.values)
    counts = partition.fold([forget("ada", 41)], 0.0)
    assert counts.events == {"forget": 1}
    commit_all(partition, store)
    assert not [key for key, value in store.values.items() if b"ada" in key + value]
    assert partition.cache.users == 1
    pending = partition.take_due(1.0)
    assert pending is not None
    assert pending.request.user_id == "bob"
    assert partition.take_due(1.0) is None
    partition.settle(pending)
    assert partition.owed == 0


def test_forgetting_a_stranger_changes_nothing() -> None:
    """A user of whom nothing is kept is neither counted nor written."""
    partition = running()
    partition.fold([forget("nobody", 0)], 0.0)
    work = partition.take_work()
    assert work is not None
    assert (work.changes, work.offset) == ([], 1)
    assert partition.cache.users == 0


@pytest.mark.parametrize("published", [True, False])
@pytest.mark.parametrize("committed", [True, False])
@pytest.mark.parametrize("returns", [True, False])
def test_a_list_under_way_does_not_bring_a_forgotten_user_back(
    published: bool, committed: bool, returns: bool
) -> None:
    """A list that is made or given up after its user was forgotten, even when the user is back, changes nothing."""
    store = DictStore()
    partition = running(store=store)
    partition.fold(likes(["ada"] * 3), 0.0)
    pending = partition.take_due(1.0)
    assert pending is not None
    partition.fold([forget("ada", 3)], 0.0)
    if committed:
        commit_all(partition, store)
    if returns:
        partition.fold(likes(["ada"] * 2, first_offset=4), 0.0)
    if published:
        partition.settle(pending)
    else:
        partition.withdraw(pending)
    again = partition.take_due(2.0)
    assert (again is not None) is returns
    if again is not None:
        assert len(again.request.records) == 2 * 32
        partition.settle(again)
    commit_all(partition, store)
    state = store.load("ada")
    assert (state is not None) is returns
    if state is not None:
        assert (len(state), state.unserved) == (2, 0)
    assert partition.cache.users == int(returns)
    assert partition.owed == 0


def test_a_trace_that_is_none_is_not_carried_on() -> None:
    """A traceparent is kept in the state and sent with the list: one as long as a record would be refused by Kafka."""
    partition = running()
    for offset, trace in enumerate([b"00-" + b"a" * 52, b"x" * 1_000_000, None]):
        headers = (("traceparent", trace),)
        partition.fold([record_of(like("u", f"e{offset}"), offset, headers=headers)], 0.0)
        pending = partition.take_due(1.0)
        assert pending is not None
        assert pending.traceparent == (trace if offset == 0 else None)
        partition.settle(pending)


def test_late_and_out_of_order_events_have_the_place_of_their_arrival() -> None:
    """An event that comes late is appended where it came, rewrites nothing before it, owes a list like any other, and
    the user counts as heard of at the newest time told."""
    partition = running()
    times = [5_000, 9_000, 2_000, 9_500]
    records = []
    for offset, timestamp_ms in enumerate(times):
        event = like("u", f"e{offset}", timestamp_ms=timestamp_ms)
        records.append(record_of(event, offset, timestamp=10_000))
    histories, late = [], 0
    for record in records:
        late += partition.fold([record], 0.0).out_of_order
        pending = partition.take_due(1.0)
        assert pending is not None
        histories.append(pending.request.records)
        partition.settle(pending)
    assert all(later.startswith(earlier) for earlier, later in pairwise(histories))
    stored = np.frombuffer(histories[-1], dtype=RECORD_DTYPE)["timestamp_ms"].tolist()
    assert stored == times
    assert late == 1
    assert partition.cache.get("u").last_ms == 9_500


def _profiles_and_forgets(user_id: str, number: int) -> list[Event | Forget]:
    return [profile(user_id, number, age=number), Forget(event_id="f", user_id=user_id, timestamp_ms=number)]


few_users = st.sampled_from(["a", "b", "ü"])
any_records = st.lists(
    st.builds(
        lambda event, content_type, fields: (event, content_type, fields),
        events(few_users, st.sampled_from([f"e{number}" for number in range(9)]))
        | st.builds(_profiles_and_forgets, few_users, st.integers(0, 3)).flatmap(st.sampled_from),
        st.sampled_from(["application/json", "application/msgpack"]),
        st.sampled_from([{}, {}, {}, {"value": None}, {"value": b"{}"}, {"key": b"someone else"}]),
    ),
    max_size=60,
)


@settings(max_examples=60)
@given(any_records, st.sets(st.integers(0, 60)), st.sets(st.integers(0, 60)))
def test_it_does_not_matter_how_many_records_are_folded_at_once(
    drawn: list[tuple[Any, Any, dict[str, Any]]], ends: set[int], replayed: set[int]
) -> None:
    """However a run of records is cut, states, dead letters, counts and owed lists are those of one after another."""
    records = []
    for offset, (event, content_type, fields) in enumerate(drawn):
        headers = [("content-type", content_type.encode()), ("traceparent", b"00-%d" % (offset // 4))]
        if offset in replayed:
            headers.append((REPLAYED_HEADER, b"1"))
        made = {"value": encode_event(event, content_type), "headers": tuple(headers), **fields}
        records.append(record_of(event, offset, **made))

    def outcome(cuts: list[int]) -> tuple[Any, ...]:
        partition = running(max_event_bytes=1 << 20)
        counted: Counter[str] = Counter()
        for begin, end in pairwise(cuts):
            counts = partition.fold(records[begin:end], 0.0)
            counted.update(counts.events)
            counted.update(counts.dead)
            counted.update(duplicates=counts.duplicates, late=counts.out_of_order)
        lists = [
            (one.request, one.session_id, one.trigger, one.traceparent, one.since_ms, one.events)
            for one in take_all(partition)
        ]
        work = partition.take_work()
        made = (work.changes, work.dead, work.offset, work.nbytes) if work is not None else None
        return made, lists, +counted, partition.cache.nbytes, partition.next_offset

    one_by_one = outcome(list(range(len(records) + 1)))
    assert outcome(sorted({0, len(records)} | {end for end in ends if end < len(records)})) == one_by_one
    assert outcome([0, len(records)]) == one_by_one
