"""The checker of the chaos runs finds every violation that is planted, and none in what is right."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from struct import pack

import pytest
from answers import MAX_EVENTS, answer, history_digest
from batches import Batch, check_fencing, read_batches
from checker import Checker, Delivery, Kind, OffsetSample, Verdict
from msgspec import structs
from workload import Sent, Workload

from schemas.codecs import CONTENT_TYPE_HEADER, decode_instruction, decode_list, encode_list
from schemas.dead_letters import DeadLetter
from schemas.errors import UndecodableEvent
from schemas.events import Forget, Profile
from schemas.lists import ModelVersion, RecommendationList, RecommendedVideo, TriggerEvent
from stream.sequences import UserState, list_id
from stream.stored import Change, tail_key

TOPIC = "events"
PARTITIONS = 3
MODEL = "one-1"


@dataclass(frozen=True)
class Stood:
    """A record of a topic."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    timestamp: int = 1_800_000_000_000


@dataclass
class World:
    """Topics as a daemon without a fault leaves them, made by the daemon's own fold; commits come every 20 records."""

    events: list[Stood] = field(default_factory=list)
    lists: list[Stood] = field(default_factory=list)
    letters: list[Stood] = field(default_factory=list)
    changelog: list[Stood] = field(default_factory=list)
    committed: dict[int, int] = field(default_factory=dict)
    samples: list[OffsetSample] = field(default_factory=list)
    owners: dict[int, str] = field(default_factory=dict)  # of lists, by place, where it is not MODEL

    @classmethod
    def after(cls, records: int) -> World:
        world = cls()
        states: dict[str, UserState] = {}
        offsets = dict.fromkeys(range(PARTITIONS), 0)
        dirty: dict[str, UserState] = {}
        for number, sent in enumerate(Workload(7, 60).take(records), start=1):
            partition = sum(sent.key) % PARTITIONS
            offset, offsets[partition] = offsets[partition], offsets[partition] + 1
            world._fold(Stood(partition, offset, sent.key, sent.value, sent.headers), states, dirty)
            if number % 20 == 0 or number == records:
                world._commit(dirty, dict(offsets))
        return world

    def _fold(self, record: Stood, states: dict[str, UserState], dirty: dict[str, UserState]) -> None:
        self.events.append(record)
        try:
            event = decode_instruction(record.value, dict(record.headers).get(CONTENT_TYPE_HEADER))
            if event.user_id.encode() != record.key:
                raise UndecodableEvent("key")
        except UndecodableEvent:
            letter = DeadLetter.make(
                topic=TOPIC,
                partition=record.partition,
                offset=record.offset,
                stage="decode",
                exception_class="X",
                message="x",
            )
            self.letters.append(
                Stood(0, len(self.letters), record.key, record.value, tuple(letter.to_headers()))
            )
            return
        state = states.setdefault(event.user_id, UserState(event.user_id))
        if isinstance(event, Profile):
            changed = state.fold_profile(event, record.timestamp)
        elif isinstance(event, Forget):
            changed = state.forget(record.offset)
        else:
            changed = state.fold(event, record.offset, record.timestamp, None, MAX_EVENTS)
        if changed:
            dirty[event.user_id] = state

    def _commit(self, dirty: dict[str, UserState], offsets: dict[int, int]) -> None:
        for user_id, state in dirty.items():
            partition = sum(user_id.encode()) % PARTITIONS
            if state.unserved:
                self.lists.append(self._list(state, partition))
                state.ask()
                state.served()
            self._log(partition, state.changes())
        dirty.clear()
        self.committed = offsets
        ends = dict.fromkeys(range(PARTITIONS), len(self.changelog))
        self.samples.append(OffsetSample(offsets, ends))

    def _list(self, state: UserState, partition: int) -> Stood:
        digest = history_digest(state.records, state.videos)
        value = RecommendationList(
            list_id=list_id(state.user_id, state.event_id),
            user_id=state.user_id,
            session_id=state.session_id,
            items=tuple(
                RecommendedVideo(video, -1.0, rank) for rank, video in enumerate(answer(digest, 3), 1)
            ),
            model=ModelVersion("chaos", MODEL),
            strategy="topk",
            generated_at_ms=1,
            trigger=TriggerEvent(TOPIC, partition, state.offset, state.event_id, state.timestamp_ms),
            sequence_length=len(state),
            cached_tokens=0,
            latency_ms=0.0,
        )
        return Stood(partition, len(self.lists), state.user_id.encode(), encode_list(value))

    def _log(self, partition: int, changes: Iterable[Change]) -> None:
        for key, value in changes:
            self.changelog.append(Stood(partition, len(self.changelog), key, value))

    def change_list(self, place: int, change: Callable[[RecommendationList], RecommendationList]) -> None:
        """Put another list in the place of one."""
        value = change(decode_list(self.lists[place].value))
        self.lists[place] = replace(self.lists[place], value=encode_list(value))

    def lists_of_one_user(self) -> list[int]:
        """The places of the lists of whoever has the most."""
        by_user: dict[bytes | None, list[int]] = {}
        for place, record in enumerate(self.lists):
            by_user.setdefault(record.key, []).append(place)
        return max(by_user.values(), key=len)

    def check(self, delivery: Delivery) -> Verdict:
        owners = {
            decode_list(self.lists[place].value).generated_at_ms: name for place, name in self.owners.items()
        }
        checker = Checker(delivery, TOPIC, lambda value: owners.get(value.generated_at_ms, MODEL))
        checker.read_events(self.events, len(self.events))
        checker.read_dead_letters(self.letters)
        checker.read_lists(self.lists)
        checker.read_changelog(self.changelog, self.samples)
        checker.read_offsets(self.committed)
        return checker.verdict


@pytest.fixture
def world() -> World:
    """A thousand records and what a daemon without a fault makes of them."""
    return World.after(3_000)


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_what_is_right_passes(world: World, delivery: Delivery) -> None:
    """A run without a violation has no findings, and the workload has some of everything in it."""
    verdict = world.check(delivery)
    assert not verdict.counts, verdict.examples
    figures = verdict.figures
    assert figures["records"] == 3_000
    assert figures["lists"] == figures["lists_distinct"] > 500
    assert min(figures[name] for name in ("duplicate_events", "undecodable", "users_forgotten")) > 0
    assert any(record.key and record.key[:1] == b"b" and record.value is None for record in world.changelog)


def only(verdict: Verdict, *kinds: Kind) -> None:
    """These kinds of findings are failures, and no others."""
    assert set(verdict.failures) == set(kinds), verdict.examples


BOTH: list[Delivery] = ["at_least_once", "exactly_once"]


@pytest.mark.parametrize("delivery", BOTH)
def test_a_lost_list_is_found(world: World, delivery: Delivery) -> None:
    """A user's last list that is not there is lost, although the state says that it was served."""
    del world.lists[world.lists_of_one_user()[-1]]
    only(world.check(delivery), Kind.LOST)


@pytest.mark.parametrize("delivery", BOTH)
def test_a_lost_list_in_the_middle_is_found(world: World, delivery: Delivery) -> None:
    """A list that a state calls served and that is not there is lost, although a later one came."""
    places = world.lists_of_one_user()
    del world.lists[places[len(places) // 2]]
    only(world.check(delivery), Kind.LOST)


@pytest.mark.parametrize("delivery", BOTH)
def test_swapped_lists_are_found(world: World, delivery: Delivery) -> None:
    """Two lists of a user in the wrong order, by one owner, are out of order in both deliveries."""
    first, second = world.lists_of_one_user()[3:5]
    world.lists[first], world.lists[second] = world.lists[second], world.lists[first]
    only(world.check(delivery), Kind.OUT_OF_ORDER)


def test_an_older_list_of_another_owner_is_allowed_at_least_once_alone(world: World) -> None:
    """What a new owner makes again from the last commit on may be older than what was published; not exactly once."""
    first, second = world.lists_of_one_user()[3:5]
    world.lists[first], world.lists[second] = world.lists[second], world.lists[first]
    world.change_list(second, lambda value: structs.replace(value, generated_at_ms=2))
    world.owners[second] = "two-1"
    verdict = world.check("at_least_once")
    only(verdict)
    assert verdict.counts == {Kind.REWOUND: 1}
    only(world.check("exactly_once"), Kind.OUT_OF_ORDER)


def test_a_duplicate_is_found(world: World) -> None:
    """A list that is there twice is a failure exactly once, and counted at least once."""
    place = world.lists_of_one_user()[-1]
    world.lists.append(world.lists[place])
    only(world.check("exactly_once"), Kind.DUPLICATE)
    verdict = world.check("at_least_once")
    only(verdict)
    assert verdict.counts == {Kind.DUPLICATE: 1}


@pytest.mark.parametrize("delivery", BOTH)
def test_a_list_of_another_history_is_found(world: World, delivery: Delivery) -> None:
    """A list whose videos are not the model's answer to the history at its trigger is wrong."""
    place = world.lists_of_one_user()[2]
    other = world.lists_of_one_user()[3]
    items = decode_list(world.lists[other].value).items
    world.change_list(place, lambda value: structs.replace(value, items=items))
    only(world.check(delivery), Kind.WRONG)


@pytest.mark.parametrize("delivery", BOTH)
def test_a_list_of_no_event_is_found(world: World, delivery: Delivery) -> None:
    """A list after an event that is not in the topic is wrong."""
    user = world.lists[-1].key
    world.events.append(Stood(world.lists[-1].partition, 10_000, user, b"{}"))
    letter = DeadLetter.make(
        topic=TOPIC,
        partition=world.lists[-1].partition,
        offset=10_000,
        stage="decode",
        exception_class="X",
        message="x",
    )
    world.letters.append(Stood(0, 10_000, user, b"{}", tuple(letter.to_headers())))
    world.committed[world.lists[-1].partition] = 10_001
    value = decode_list(world.lists[-1].value)
    trigger = TriggerEvent(TOPIC, value.trigger.partition, 10_000, "none", 0)
    late = structs.replace(value, trigger=trigger, list_id="another")
    world.lists.append(Stood(world.lists[-1].partition, 10_000, user, encode_list(late)))
    only(world.check(delivery), Kind.WRONG)


@pytest.mark.parametrize("delivery", BOTH)
def test_a_state_without_an_event_is_found(world: World, delivery: Delivery) -> None:
    """A user's last state in the changelog that lacks the last event is found."""
    tails = [place for place, record in enumerate(world.changelog) if (record.key or b"")[:1] == b"t"]
    for place in reversed(tails):
        earlier = [
            one for one in tails if one < place and world.changelog[one].key == world.changelog[place].key
        ]
        if earlier and world.changelog[place].value and world.changelog[earlier[-1]].value:
            break
    stale = world.changelog[earlier[-1]].value
    world.changelog[place] = replace(world.changelog[place], value=stale)
    failures = world.check(delivery).failures
    assert Kind.STATE in failures


@pytest.mark.parametrize("delivery", BOTH)
def test_a_state_that_was_never_written_is_found(world: World, delivery: Delivery) -> None:
    """A user of whom nothing is kept is found, and so are the offsets that were committed without the state."""
    user = (world.lists[-1].key or b"").decode()
    world.changelog = [record for record in world.changelog if (record.key or b"")[1:] != user.encode()]
    failures = world.check(delivery).failures
    assert any("nothing is kept" in text for text in failures[Kind.STATE])
    assert Kind.OFFSET in failures


@pytest.mark.parametrize("delivery", BOTH)
def test_an_offset_past_the_state_is_found(world: World, delivery: Delivery) -> None:
    """An offset that was committed before the changelog had the events below it is found, whatever came later."""
    sample = world.samples[40]
    ahead = dict(world.samples[80].committed)
    world.samples[40] = OffsetSample(ahead, sample.changelog_ends)
    only(world.check(delivery), Kind.OFFSET)


@pytest.mark.parametrize("delivery", BOTH)
def test_what_was_kept_of_a_forgotten_user_is_found(world: World, delivery: Delivery) -> None:
    """A block that no tail names any more, as of a user who was forgotten, is found."""
    place = next(
        place
        for place, one in enumerate(world.changelog)
        if one.key and one.key[:1] == b"b" and not one.value
    )
    del world.changelog[place]
    only(world.check(delivery), Kind.STATE)


def test_a_state_that_is_set_back_is_found(world: World) -> None:
    """An older state behind a newer one is a failure exactly once; at least once it must be mended by the end."""
    user = world.lists[world.lists_of_one_user()[0]].key or b""
    tails = [one for one in world.changelog if one.key == tail_key(user.decode()) and one.value]
    place = world.changelog.index(tails[-1])
    world.changelog[place:place] = [replace(tails[-2], offset=place), replace(tails[-3], offset=place)]
    assert Kind.SET_BACK in world.check("exactly_once").failures
    verdict = world.check("at_least_once")
    assert verdict.counts[Kind.SET_BACK] == 1
    assert Kind.SET_BACK not in verdict.failures


@pytest.mark.parametrize("delivery", BOTH)
def test_a_lost_dead_letter_and_one_of_an_event_are_found(world: World, delivery: Delivery) -> None:
    """A record that is no event must be in the dead letters, and one that is must not."""
    gone = world.letters.pop()
    only(world.check(delivery), Kind.LOST)
    world.letters.append(gone)
    event = world.events[0]
    letter = DeadLetter.make(
        topic=TOPIC,
        partition=event.partition,
        offset=event.offset,
        stage="decode",
        exception_class="X",
        message="x",
    )
    world.letters.append(Stood(0, 99, event.key, event.value, tuple(letter.to_headers())))
    only(world.check(delivery), Kind.WRONG)


@pytest.mark.parametrize("delivery", BOTH)
def test_local_files_that_differ_are_found(world: World, delivery: Delivery) -> None:
    """What lies in the files of a partition's last owner must be what the changelog comes to."""
    kept: dict[bytes, bytes] = {}
    for record in world.changelog:
        assert record.key is not None
        kept.pop(record.key, None)
        if record.value is not None:
            kept[record.key] = record.value

    def check(change: Callable[[dict[bytes, bytes]], object]) -> Verdict:
        checker = Checker(delivery, TOPIC)
        checker.read_events(world.events)
        checker.read_dead_letters(world.letters)
        checker.read_lists(world.lists)
        checker.read_changelog(world.changelog)
        for partition, group in groupby(sorted(kept, key=_place), key=_place):
            files = {key: kept[key] for key in group}
            if partition == 1:
                change(files)
            checker.read_files(partition, files)
        return checker.verdict

    only(check(lambda files: None))
    only(check(lambda files: files.popitem()), Kind.STATE)
    only(check(lambda files: files.update({b"tsomeone": b"x"})), Kind.STATE)


def _place(key: bytes) -> int:
    user = key[1:-4] if key[:1] == b"b" else key[1:]
    return sum(user) % PARTITIONS


def test_a_committed_list_of_a_fenced_daemon_is_found() -> None:
    """What a producer commits after another of its id began is found; what it has aborted is counted, no more."""
    right = [
        Batch(0, 0, 5, 9, 1),
        Batch(0, 5, 1, 9, 1, marker="commit"),
        Batch(0, 6, 3, 9, 1),
        Batch(0, 9, 1, 9, 2, marker="abort"),  # the claim of epoch 2 ends what epoch 1 had under way
        Batch(0, 10, 4, 9, 2),
        Batch(0, 14, 1, 9, 2, marker="commit"),
    ]
    verdict = Verdict("exactly_once")
    check_fencing(right, verdict)
    assert not verdict.counts
    assert verdict.figures["lists_aborted"] == 3
    late = [Batch(0, 15, 2, 9, 1), Batch(0, 17, 1, 9, 1, marker="commit")]
    check_fencing([*right, *late], verdict)
    assert verdict.counts == {Kind.FENCED: 1}


def test_a_list_outside_of_a_transaction_is_found() -> None:
    """Exactly once, what is in no transaction, or in one that never ended, is found."""
    for batches in ([Batch(0, 0, 1, -1, -1, is_transactional=False)], [Batch(0, 0, 1, 9, 1)]):
        verdict = Verdict("exactly_once")
        check_fencing(batches, verdict)
        assert verdict.counts == {Kind.FENCED: 1}


def test_batches_are_read_from_the_bytes_of_a_segment(tmp_path: Path) -> None:
    """Producer, epoch, number of records and markers are read as the protocol lays them out."""

    def batch(base: int, attributes: int, epoch: int, body: bytes, records: int = 1) -> bytes:
        rest = pack(">ibIhiqqqhii", 0, 2, 0, attributes, records - 1, 0, 0, 77, epoch, 0, records) + body
        return pack(">qi", base, len(rest)) + rest

    marker = bytes([16, 0, 0, 0, 8, 0, 0, 0, 1]) + bytes(6)
    segment = tmp_path / "lists-3" / f"{0:020}.log"
    segment.parent.mkdir()
    segment.write_bytes(batch(0, 16, 4, b"data" * 9, 6) + batch(6, 48, 4, marker) + b"\0" * 100)
    assert list(read_batches(tmp_path, "lists")) == [
        Batch(3, 0, 6, 77, 4),
        Batch(3, 6, 1, 77, 4, marker="commit"),
    ]


def test_the_workload_is_the_same_for_the_same_seed() -> None:
    """A run can be repeated: the same seed makes the same records, another makes others."""
    once: list[Sent] = Workload(1, 50).take(500)
    assert once == Workload(1, 50).take(500)
    assert once != Workload(2, 50).take(500)


def test_the_checker_shares_no_code_with_the_daemon() -> None:
    """Of the project, what judges a run imports the schema alone."""
    here = Path(__file__).parent
    for name in ("checker", "pure_fold", "kept_states", "batches", "answers"):
        text = (here / f"{name}.py").read_text()
        assert "schemas" in text or name in ("answers", "kept_states", "batches")
        assert not re.search(r"^\s*(from|import) (stream|mtgr)\b", text, re.MULTILINE), name
