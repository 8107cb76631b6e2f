"""Promises of stream.sequences and stream.stored: a state is the fold of its events, in memory and in the store."""

from __future__ import annotations

import math
import struct
from typing import Any

import msgspec
import pytest
from dict_store import DictStore
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from strategies import ODD_IDS, events, identifiers

from mtgr.attributes import pack_attributes
from mtgr.history import RECORD_BYTES, History, event_digest
from schemas.bounds import MAX_SECONDS, MAX_WATCH_RATIO
from schemas.events import Interaction, Like, Profile, Watch
from stream.sequences import UserState, list_id
from stream.stored import (
    VERSION,
    CorruptState,
    Tail,
    block_key,
    profile_key,
    read_tail,
    stored_keys,
    tail_key,
    user_of_tail_key,
)

BLOCK = 16
MAX_EVENTS = 32
CAPACITY = 48  # 125 % of 32 in whole blocks


def like(event_id: str, user_id: str = "u", **fields: object) -> Like:
    return Like(**({"event_id": event_id, "user_id": user_id, "video_id": "v", "timestamp_ms": 0} | fields))  # type: ignore[arg-type]


def profile(timestamp_ms: int, user_id: str = "u", **attributes: Any) -> Profile:
    return Profile(event_id="p", user_id=user_id, timestamp_ms=timestamp_ms, attributes=attributes)


def folded(count: int, user_id: str = "u", max_events: int = MAX_EVENTS) -> UserState:
    state = UserState(user_id)
    for number in range(count):
        assert state.fold(like(f"e{number}", video_id=f"v{number}"), number, number, None, max_events)
    return state


def store_of(state: UserState) -> DictStore:
    store = DictStore()
    store.apply(state.changes(), 0)
    return store


def history(state: UserState) -> tuple[bytes, list[str]]:
    read = History.from_bytes(bytes(state.records), bytes(state.videos))
    return read.records.tobytes(), read.video_ids


class SequenceMachine(RuleBasedStateMachine):
    """Events, lists, commits and restarts in any order, against a plain list of the events kept."""

    def __init__(self) -> None:
        super().__init__()
        self.state = UserState("u")
        self.store = DictStore()
        self.kept: list[Interaction] = []
        self.unserved: list[int] = []  # arrivals of the events that no list was published for
        self.asked = 0
        self.number = 0
        self.offset = -1
        self.last: Interaction | None = None
        self.session: str | None = None
        self.profile: tuple[int, bytes] | None = None
        self.durable: tuple[list[Interaction], list[int], tuple[int, bytes] | None] | None = None

    def _fold(self, event: Interaction) -> None:
        known = any(one.event_id == event.event_id for one in self.kept)
        offset = self.offset + 1 + self.number % 3
        arrived = 1_000 + self.number
        traceparent = b"trace" if self.number % 2 else None
        assert self.state.fold(event, offset, arrived, traceparent, MAX_EVENTS) is not known
        self.number += 1
        if known:
            return
        self.offset = offset
        self.last = event
        self.session = event.session_id or self.session
        self.kept.append(event)
        self.unserved.append(arrived)
        if len(self.kept) > CAPACITY:
            del self.kept[: (len(self.kept) - MAX_EVENTS) // BLOCK * BLOCK]
        assert self.state.traceparent == traceparent

    @rule(event=events(user_ids=st.just("u")))
    def any_event(self, event: Interaction) -> None:
        self._fold(event)

    @rule(count=st.integers(1, 60))
    def burst(self, count: int) -> None:
        for _ in range(count):
            self._fold(like(f"burst-{self.number}", video_id=f"v{self.number % 7}"))

    @rule(timestamp_ms=st.integers(0, 5), attributes=st.sampled_from(({}, {"age": 7.0}, {"age": 8.0})))
    def any_profile(self, timestamp_ms: int, attributes: dict[str, Any]) -> None:
        told = (timestamp_ms, pack_attributes(attributes))
        counts = self.profile is None or (told[0] >= self.profile[0] and told != self.profile)
        assert self.state.fold_profile(profile(timestamp_ms, **attributes), 9) is counts
        if counts:
            self.profile = told
            assert self.state.pinned

    @rule()
    def forget(self) -> None:
        known = bool(self.kept) or self.profile is not None
        assert self.state.forget(self.offset + 1) is known
        if known:
            self.offset += 1
            assert self.state.pinned
        self.kept, self.unserved, self.asked = [], [], 0
        self.last = self.session = self.profile = None

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def duplicate(self, data: st.DataObject) -> None:
        again = data.draw(st.sampled_from(self.kept))
        self._fold(like(again.event_id, video_id="another video", timestamp_ms=5))

    @precondition(lambda self: self.unserved and not self.asked)
    @rule()
    def ask(self) -> None:
        self.asked = len(self.unserved)
        assert self.state.ask() == self.asked

    @precondition(lambda self: self.asked)
    @rule()
    def withdraw(self) -> None:
        self.state.withdraw()
        self.asked = 0

    @precondition(lambda self: self.asked)
    @rule()
    def serve(self) -> None:
        self.state.served()
        del self.unserved[: self.asked]
        self.asked = 0

    @rule()
    def commit(self) -> None:
        self.store.apply(self.state.changes(), 0)
        assert self.state.pinned
        self.state.writing -= 1
        assert self.state.pinned is bool(self.asked)
        self.durable = (list(self.kept), list(self.unserved), self.profile)

    @rule()
    def commit_and_restart(self) -> None:
        self.commit()
        loaded = self.store.load("u")
        assert (loaded is None) is (not self.kept and self.profile is None)
        if loaded is None:  # forgotten, down to the offset
            self.state, self.offset = UserState("u"), -1
        else:
            assert not loaded.dirty
            self.state = loaded
        self.asked = 0

    @invariant()
    def state_is_the_fold(self) -> None:
        state = self.state
        expected = History.from_events(self.kept)
        assert history(state) == (expected.records.tobytes(), expected.video_ids)
        assert len(state) == len(self.kept) <= CAPACITY
        assert state.first_block * BLOCK + len(self.kept) >= len(self.unserved)
        assert state.offset == self.offset
        assert state.unserved == len(self.unserved)
        assert state.unserved_since_ms == (self.unserved[0] if self.unserved else 0)
        assert (state.event_id, state.timestamp_ms) == (
            (self.last.event_id, self.last.timestamp_ms) if self.last else ("", 0)
        )
        assert state.session_id == self.session
        assert (state.profile_ms, state.profile) == (self.profile or (-1, b""))

    @invariant()
    def store_is_the_last_commit(self) -> None:
        if self.durable is None:
            assert not self.store.values
            return
        kept, unserved, told = self.durable
        loaded = self.store.load("u")
        if not kept and told is None:
            assert not self.store.values  # nothing remains of a forgotten user
            return
        assert loaded is not None
        expected = History.from_events(kept)
        assert history(loaded) == (expected.records.tobytes(), expected.video_ids)
        assert loaded.unserved == len(unserved)
        assert loaded.unserved_since_ms == (unserved[0] if unserved else 0)
        blocks = range(loaded.first_block, loaded.first_block + len(kept) // BLOCK)
        assert (loaded.profile_ms, loaded.profile) == (told or (-1, b""))
        assert self.store.values.keys() == {
            tail_key("u"),
            *(block_key("u", number) for number in blocks),
            *([profile_key("u")] if told else []),
        }


def test_a_state_is_the_fold_of_its_events_through_commits_and_restarts() -> None:
    """Whatever the order of events, duplicates, lists, commits and restarts, nothing is lost, doubled or left behind.

    The store never keeps a block of events that were cut off.
    """
    run_state_machine_as_test(
        SequenceMachine, settings=settings(max_examples=60, stateful_step_count=40, deadline=None)
    )


@given(st.integers(0, 200), st.integers(1, 7).map(BLOCK.__mul__))
def test_a_sequence_is_cut_by_blocks_and_never_outgrows_its_capacity(count: int, max_events: int) -> None:
    """A sequence grows to 125 % of the limit in whole blocks, and a cut leaves less than a block above the limit."""
    state = UserState("u")
    longest = math.ceil(math.ceil(max_events * 1.25) / BLOCK) * BLOCK
    for number in range(count):
        before = len(state)
        state.fold(like(f"e{number}", video_id=f"v{number}"), number, 0, None, max_events)
        if before == longest:
            assert max_events <= len(state) < max_events + BLOCK
            assert (before + 1 - len(state)) % BLOCK == 0
        else:
            assert len(state) == before + 1
    kept = range(state.first_block * BLOCK, count)
    assert history(state)[1] == [f"v{number}" for number in kept]


@given(st.integers(1, CAPACITY), st.integers(1, CAPACITY), st.booleans())
def test_a_shorter_limit_cuts_a_stored_sequence(count: int, max_events: int, stored: bool) -> None:
    """A sequence that was kept for a longer model is cut to a shorter one, in memory and in the store alike."""
    state = folded(count)
    store = store_of(state)
    if stored:
        loaded = store.load("u")
        assert loaded is not None
        state = loaded
    state.cut(max_events)
    assert min(count, max_events) <= len(state) < max_events + BLOCK
    store.apply(state.changes(), 0)
    again = store.load("u")
    assert again is not None
    assert history(again) == history(state)
    assert history(again)[1] == [f"v{number}" for number in range(count - len(state), count)]
    assert len(store.values) == 1 + len(state) // BLOCK


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.data())
def test_a_torn_write_of_changes_loses_no_durable_state(bursts: list[int], data: st.DataObject) -> None:
    """Where a crash lets only the first changes of a commit through, the state before or after it is read back whole.

    Changes reach the changelog one after another, so every prefix of them must be a state that a restore understands.
    """
    state, store, number = UserState("u"), DictStore(), 0
    before: tuple[bytes, list[str]] | None = None
    known = {b""}
    for burst in bursts:
        if data.draw(st.booleans()):
            state.fold_profile(profile(number, number=number), 9)
            known.add(state.profile)
        for _ in range(burst):
            state.fold(like(f"e{number}", video_id=f"v{number}"), number, 0, None, MAX_EVENTS)
            number += 1
        changes = list(state.changes())
        torn = DictStore(store.values)
        torn.apply(changes[: data.draw(st.integers(0, len(changes)))], 0)
        found = torn.load("u")
        assert (history(found) if found else None) in (before, history(state))
        assert found is None or found.profile in known
        store.apply(changes, 0)
        before = history(state)
        known = {state.profile}


@given(st.data())
def test_an_event_rewrites_one_block_at_most(data: st.DataObject) -> None:
    """What a commit writes for one more event grows neither with the history nor with the profile."""
    count = data.draw(st.integers(0, CAPACITY - 1))
    state = folded(count)
    list(state.changes())
    state.fold_profile(profile(1, text="x" * 128), 9)
    list(state.changes())
    state.fold(like("new"), count, 0, None, MAX_EVENTS)
    written = [value for _, value in state.changes() if value is not None]
    assert len(written) <= 2
    assert sum(map(len, written)) < BLOCK * (RECORD_BYTES + 4) + 100


def test_bytes_that_merely_look_like_an_event_id_are_no_duplicate() -> None:
    """An event whose digest happens to stand across two fields of another event is appended, once."""
    for number in range(10_000):
        seconds, ratio = struct.unpack("<ff", event_digest(f"e{number}"))
        if 0 <= seconds <= MAX_SECONDS and 0 <= ratio <= MAX_WATCH_RATIO:
            break
    else:
        pytest.fail("no digest reads as two valid floats")
    disguise = Watch(
        event_id="other",
        user_id="u",
        video_id="v",
        timestamp_ms=0,
        watch_seconds=seconds,
        watch_ratio=ratio,
    )
    state = UserState("u")
    assert state.fold(disguise, 0, 0, None, MAX_EVENTS)
    assert event_digest(f"e{number}") in state.records
    assert state.fold(like(f"e{number}"), 1, 0, None, MAX_EVENTS)
    assert not state.fold(like(f"e{number}"), 2, 0, None, MAX_EVENTS)
    assert len(state) == 2


def test_a_duplicate_changes_nothing() -> None:
    """A duplicate leaves a state clean and unowed, so that it costs no write and no list."""
    state = folded(3)
    store = store_of(state)
    loaded = store.load("u")
    assert loaded is not None
    loaded.ask()
    loaded.served()
    list(loaded.changes())
    loaded.writing -= 1
    assert not loaded.fold(like("e1", session_id="s"), 9, 9, b"trace", MAX_EVENTS)
    assert not loaded.dirty
    assert not loaded.pinned
    assert (loaded.offset, loaded.unserved, loaded.session_id, loaded.traceparent) == (2, 0, None, None)


def test_a_profile_is_the_newest_that_was_told() -> None:
    """An older profile that comes late is ignored, one of the same moment replaces, and an equal one is no change."""
    state = UserState("u")
    assert state.fold_profile(profile(5, age=30, city="x"), 9)
    assert not state.fold_profile(profile(4, age=29), 9)
    assert not state.fold_profile(profile(5, city="x", age=30), 9)
    assert state.profile == pack_attributes({"age": 30, "city": "x"})
    assert state.fold_profile(profile(5, age=31), 9)
    assert state.fold_profile(profile(6), 9)
    assert (state.profile, state.profile_ms) == (b"", 6)
    assert not state.fold_profile(profile(5, age=32), 9), "it was forgotten later than that"


def test_a_profile_owes_no_list() -> None:
    """A profile is no part of the sequence: it adds no event, no list is owed for it, and the last event stays."""
    state = folded(2)
    state.ask()
    state.served()
    before = (history(state), state.offset, state.event_id, state.timestamp_ms)
    assert state.fold_profile(profile(9, age=30), 9)
    assert state.unserved == 0
    assert (history(state), state.offset, state.event_id, state.timestamp_ms) == before


def test_a_profile_is_written_only_when_it_changes() -> None:
    """A profile costs a commit nothing while it stays as it is."""
    state = UserState("u")
    state.fold_profile(profile(1, age=30), 9)
    assert {key for key, _ in state.changes()} == {tail_key("u"), profile_key("u")}
    state.fold(like("e"), 1, 0, None, MAX_EVENTS)
    assert {key for key, _ in state.changes()} == {tail_key("u")}


@pytest.mark.parametrize("damage", [None, b"", b"\xc0", b"\x93\x04\x01\xc4\x00", b"\x93\x02\x01"])
def test_damaged_profiles_are_refused(damage: bytes | None) -> None:
    """A profile that is missing, torn or of another version raises CorruptState instead of a wrong profile."""
    state = folded(BLOCK)
    state.fold_profile(profile(1, age=30), 9)
    store = store_of(state)
    if damage is None:
        del store.values[profile_key("u")]
    else:
        store.values[profile_key("u")] = damage
    with pytest.raises(CorruptState, match=r"user 'u': (the )?profile"):
        store.load("u")
    tail = read_tail(store.values[tail_key("u")])
    with pytest.raises(CorruptState, match="1 values beside the tail record, which tells of 1 blocks and a"):
        UserState.from_store("u", tail, [store.values[key] for key in stored_keys("u", tail)[:1]])


def test_an_event_that_was_cut_off_may_come_again() -> None:
    """Deduplication reaches back as far as the sequence does, and no further."""
    state = folded(CAPACITY + 1)
    assert state.first_block == 1
    assert state.fold(like("e0"), 100, 0, None, MAX_EVENTS)
    assert not state.fold(like(f"e{CAPACITY}"), 101, 0, None, MAX_EVENTS)


def test_late_events_stay_where_they_arrived() -> None:
    """An event with an older timestamp is appended, so that nothing the model has cached is rewritten."""
    state = UserState("u")
    for offset, timestamp_ms in enumerate((50, 10, 30)):
        state.fold(like(f"e{offset}", timestamp_ms=timestamp_ms), offset, 0, None, MAX_EVENTS)
    times = History.from_bytes(bytes(state.records), bytes(state.videos)).records["timestamp_ms"]
    assert times.tolist() == [50, 10, 30]
    assert state.timestamp_ms == 30


@given(st.lists(identifiers, min_size=2, max_size=6, unique=True), st.integers(0, 2**32 - 1))
def test_keys_of_different_users_never_collide(users: list[str], number: int) -> None:
    """No key of one user is a key of another, whatever bytes their ids hold."""
    keys = [
        key
        for user in users
        for key in (tail_key(user), profile_key(user), block_key(user, number), block_key(user, 0))
    ]
    assert len(set(keys)) == len(users) * (3 if number == 0 else 4)
    for user in users:
        assert user_of_tail_key(tail_key(user)) == user
        assert user_of_tail_key(block_key(user, number)) is None
        assert user_of_tail_key(profile_key(user)) is None


id_parts = st.text(alphabet="1:ab", min_size=1, max_size=6) | st.sampled_from(ODD_IDS)


@given(id_parts, id_parts, id_parts, id_parts)
def test_a_list_id_stands_for_one_user_and_event(user: str, event: str, user2: str, event2: str) -> None:
    """The same user and event always give the same list id, and no other pair gives it."""
    assert list_id(user, event) == list_id(user, event)
    assume((user, event) != (user2, event2))
    assert list_id(user, event) != list_id(user2, event2)


def test_list_ids_are_the_same_in_every_release() -> None:
    """A list made again after an upgrade has the id that consumers know: the formula is part of the wire."""
    assert list_id("u-1042", "b7c1f1e2-0004") == "e9c0ba2eb4c1443f0c733a666f9fb3ba"


@given(st.integers(BLOCK, CAPACITY), st.data())
def test_damaged_blocks_are_refused(count: int, data: st.DataObject) -> None:
    """A sealed block that is missing, torn or of another length raises CorruptState instead of a wrong history."""
    store = store_of(folded(count))
    key = block_key("u", data.draw(st.integers(0, count // BLOCK - 1)))
    block = store.values.pop(key)
    damage = data.draw(st.sampled_from(["missing", "torn", "longer"]))
    if damage == "torn":
        store.values[key] = block[: data.draw(st.integers(0, len(block) - 1))]
    elif damage == "longer":
        store.values[key] = block + data.draw(st.binary(min_size=1, max_size=40))
    with pytest.raises(CorruptState, match="user 'u'"):
        store.load("u")


@given(st.integers(1, CAPACITY), st.data())
def test_damaged_tails_are_refused(count: int, data: st.DataObject) -> None:
    """A tail record that is cut short, of another version or of no form at all raises CorruptState."""
    tail = store_of(folded(count)).values[tail_key("u")]
    cut = tail[: data.draw(st.integers(0, len(tail) - 1))]
    for value in (cut, b"\x91\x02", b"\xc0", b"{}", data.draw(st.binary(max_size=30))):
        with pytest.raises(CorruptState, match="tail record"):
            read_tail(value)
    changed = read_tail(tail)
    for field in ("records", "videos"):
        fields = {name: getattr(changed, name) for name in Tail.__struct_fields__}
        fields[field] += b"x"
        blocks = [store_of(folded(count)).values.get(block_key("u", i)) for i in range(changed.sealed_blocks)]
        with pytest.raises(CorruptState, match="user 'u'"):
            UserState.from_store("u", Tail(**fields), blocks)


def test_a_tail_of_another_version_says_so() -> None:
    """State written by another program is named as such, and not misread, whatever its fields."""
    for values in ([4, 0, 0, 0, 0, 0, "e", 0, None, None, b"", b"", False], [4], [4, "other"]):
        with pytest.raises(CorruptState, match="version 4, this program reads 2 to 3: a newer program"):
            read_tail(msgspec.msgpack.encode(values))
    with pytest.raises(CorruptState, match="version 1, this program reads 2 to 3: an older program"):
        read_tail(msgspec.msgpack.encode([1, b""]))


@given(st.integers(1, CAPACITY), st.booleans())
def test_state_of_the_version_before_is_taken_over(count: int, told: bool) -> None:
    """What version 2 stored reads back whole, goes on like any other, and is written as version 3 when it changes."""
    state = folded(count)
    if told:
        state.fold_profile(profile(1, age=30), 9)
    store = store_of(state)
    for key, value in store.values.items():
        if key[:1] != b"b":  # the first thirteen fields, in the same order, were all of a tail record
            fields = msgspec.msgpack.decode(value)
            store.values[key] = msgspec.msgpack.encode([2, *fields[1:13]])
    assert read_tail(store.values[tail_key("u")]).last_ms == state.timestamp_ms
    assert read_tail(store.values[tail_key("u")]).nbytes > 0
    old = store.load("u")
    assert old is not None
    assert history(old) == history(state)
    assert (old.profile, old.profile_ms, old.offset) == (state.profile, state.profile_ms, state.offset)
    old.fold(like("new"), old.offset + 1, 7, None, MAX_EVENTS)
    store.apply(old.changes(), 1)
    assert msgspec.msgpack.decode(store.values[tail_key("u")])[0] == VERSION == 3
    again = store.load("u")
    assert again is not None
    assert history(again) == history(old)


@given(st.integers(0, CAPACITY), st.booleans(), st.text(min_size=1, max_size=20))
def test_stored_bytes_are_told_well_enough(count: int, told: bool, user_id: str) -> None:
    """A tail record tells what is stored of its user to within 200 bytes, and when the user was last heard of."""
    state = UserState(user_id)
    for number in range(count):
        state.fold(like(f"e{number}", timestamp_ms=50 + number), number, 60, None, MAX_EVENTS)
    if told or not count:
        state.fold_profile(profile(70, text="x" * 100), 65)
    changes = {key: value for key, value in state.changes() if value is not None}
    tail = read_tail(changes[tail_key(user_id)])
    true = sum(len(key) + len(value) for key, value in changes.items())
    assert abs(tail.nbytes - true) < 200
    assert tail.last_ms == (65 if told or not count else min(50 + count - 1, 60))
