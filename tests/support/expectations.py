"""What a topic of events must come to, worked out independently of the daemon, and whether it did."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiokafka import ConsumerRecord
from checkpoints import MAX_EVENTS
from records import DEADLINE_SECONDS, TopicNames, committed_offsets, consume, eventually, read_to_end

from mtgr.attributes import pack_attributes
from mtgr.history import event_digest, pack_event
from mtgr.reference import ReferenceRecommender
from mtgr.requests import ListRequest, ListResult
from schemas.codecs import CONTENT_TYPE_HEADER, decode_event, decode_list
from schemas.dead_letters import DeadLetter
from schemas.errors import UndecodableEvent
from schemas.events import Event, Interaction, Profile
from schemas.lists import RecommendationList
from stream.sequences import UserState, list_id
from stream.state import RocksStore
from stream.stored import read_tail, stored_keys, user_of_tail_key

_BLOCK = 16


class PureFold:
    """Users' sequences by the rules in the simplest words: events in order, each id once, cut by whole blocks."""

    def __init__(self, records: Iterable[ConsumerRecord], max_events: int = MAX_EVENTS) -> None:
        self.max_events = max_events
        self.dead: set[tuple[int, int]] = set()
        self.ends: dict[int, int] = {}
        self._events: dict[str, list[tuple[int, Interaction]]] = {}
        self._partitions: dict[str, int] = {}
        self._profiles: dict[str, list[tuple[int, Profile]]] = {}
        for record in records:
            self.ends[record.partition] = record.offset + 1
            event: Event | None
            try:
                event = decode_event(record.value, dict(record.headers).get(CONTENT_TYPE_HEADER))
            except UndecodableEvent:
                event = None
            if event is None or record.key != event.user_id.encode():
                self.dead.add((record.partition, record.offset))
                continue
            if isinstance(event, Profile):
                self._profiles.setdefault(event.user_id, []).append((record.offset, event))
                continue
            self._events.setdefault(event.user_id, []).append((record.offset, event))
            self._partitions[event.user_id] = record.partition

    @property
    def users(self) -> list[str]:
        """Everybody with an event."""
        return list(self._events)

    def partition(self, user_id: str) -> int:
        """Where a user's events are."""
        return self._partitions[user_id]

    def sequence(self, user_id: str, last_offset: int | None = None) -> list[tuple[int, Interaction]]:
        """A user's sequence after the event at an offset, or now: each event with its offset."""
        kept: list[tuple[int, Interaction]] = []
        capacity = -(-self.max_events * 5 // (4 * _BLOCK)) * _BLOCK
        for offset, event in self._events[user_id]:
            if last_offset is not None and offset > last_offset:
                break
            if event.event_id in {before.event_id for _, before in kept}:
                continue
            kept.append((offset, event))
            if len(kept) > capacity:
                del kept[: (len(kept) - self.max_events) // _BLOCK * _BLOCK]
        return kept

    def profile(self, user_id: str, last_offset: int) -> bytes:
        """What was known of a user up to an offset, packed."""
        told = [event for offset, event in self._profiles.get(user_id, []) if offset <= last_offset]
        newest = max(told, key=lambda event: event.timestamp_ms, default=None)
        return pack_attributes(newest.attributes) if newest else b""

    def last_list_id(self, user_id: str) -> str:
        """The id of the list that a user must have in the end."""
        return list_id(user_id, self.sequence(user_id)[-1][1].event_id)


@dataclass(frozen=True)
class Published:
    """A list as it stands in its topic."""

    record: ConsumerRecord
    value: RecommendationList


class Outcome:
    """The events and the lists of a run."""

    def __init__(self, fold: PureFold, lists: Sequence[Published]) -> None:
        self.fold = fold
        self.lists = lists

    def by_user(self) -> dict[str, list[RecommendationList]]:
        """Lists in their order in the topic."""
        found: dict[str, list[RecommendationList]] = {}
        for published in self.lists:
            found.setdefault(published.value.user_id, []).append(published.value)
        return found

    def check_lists(self, reference: ReferenceRecommender) -> None:
        """Every list is what the model says of the user's sequence after the event it names."""
        requests = []
        for published in self.lists:
            value, record = published.value, published.record
            trigger = value.trigger
            sequence = self.fold.sequence(value.user_id, trigger.offset)
            offset, event = sequence[-1]
            assert (trigger.offset, trigger.event_id, trigger.timestamp_ms) == (
                offset,
                event.event_id,
                event.timestamp_ms,
            )
            assert trigger.partition == self.fold.partition(value.user_id)
            assert value.list_id == list_id(value.user_id, event.event_id)
            assert record.key == value.user_id.encode()
            headers = dict(record.headers)
            assert headers["list_id"] == value.list_id.encode()
            assert value.sequence_length == len(sequence)
            sessions = [one.session_id for _, one in sequence if one.session_id is not None]
            if len(sequence) < self.fold.max_events:  # what was cut away had sessions too
                assert value.session_id == (sessions[-1] if sessions else None)
            assert [item.rank for item in value.items] == list(range(1, len(value.items) + 1))
            assert value.items
            records, videos = packed(event for _, event in sequence)
            profile = self.fold.profile(value.user_id, trigger.offset)
            requests.append(
                ListRequest(value.user_id, records, videos, 3 * len(value.items), profile=profile)
            )
            info = reference.checkpoint.info
            assert (value.model.name, value.model.version) == (info.name, info.version)
        for published, outcome in zip(self.lists, reference.recommend(requests), strict=True):
            assert isinstance(outcome, ListResult)
            items = published.value.items
            assert [item.score for item in items] == pytest.approx(outcome.scores[: len(items)], abs=1e-4)
            # videos of nearly the same score may change places, no others
            expected = dict(zip(outcome.video_ids, outcome.scores, strict=True))
            assert {item.video_id: item.score for item in items} == {
                item.video_id: pytest.approx(expected[item.video_id], abs=1e-4) for item in items
            }

    def check_order(self) -> None:
        """Each user's lists came once each, in the order of their events, the last after the last event."""
        for user_id, lists in self.by_user().items():
            offsets = [value.trigger.offset for value in lists]
            assert offsets == sorted(set(offsets)), f"lists of {user_id} are out of order: {offsets}"
            assert lists[-1].list_id == self.fold.last_list_id(user_id)

    def check_state(self, states: Mapping[str, UserState]) -> None:
        """The states are a pure fold of the events, and nothing is owed."""
        assert sorted(states) == sorted(self.fold.users)
        for user_id, state in states.items():
            check_state(self.fold, user_id, state)
            assert state.offset == self.fold.sequence(user_id)[-1][0]
            assert state.unserved == 0, f"{user_id} is still owed a list"


async def all_served(servers: str, names: TopicNames, *, within: float = DEADLINE_SECONDS) -> Outcome:
    """Wait until every user's last event in the topic has its list; returns all lists that came."""
    fold = PureFold(await read_to_end(servers, names.events))
    missing = {fold.last_list_id(user_id): user_id for user_id in fold.users}
    lists: list[Published] = []

    def complete(records: list[ConsumerRecord]) -> bool:
        for record in records[len(lists) :]:
            value = decode_list(record.value, dict(record.headers).get(CONTENT_TYPE_HEADER))
            lists.append(Published(record, value))
            missing.pop(value.list_id, None)
        return not missing

    started = time.monotonic()
    try:
        await consume(servers, names.lists, complete, within=within)
    except AssertionError:
        raise AssertionError(
            f"after {time.monotonic() - started:.0f} s and {len(lists)} lists, the last events of "
            f"{len(missing)} of {len(fold.users)} users have no list: {sorted(missing.values())[:10]}"
        ) from None
    return Outcome(fold, lists)


async def all_committed(servers: str, names: TopicNames, *, within: float = DEADLINE_SECONDS) -> None:
    """Wait until every event in the topic is committed."""
    fold = PureFold(await read_to_end(servers, names.events))

    async def committed() -> bool:
        return await committed_offsets(servers, names.group, names.events) == fold.ends

    await eventually(committed, f"offsets {fold.ends} of {names.events}", within=within)


async def check_durable(servers: str, names: TopicNames) -> None:
    """What is committed is durable, at whatever moment the daemon died.

    Every event below a committed offset is in its user's state or in the dead letters; every state is a pure fold up
    to its last event; a state that owes nothing has its list.
    """
    offsets = await committed_offsets(servers, names.group, names.events)
    states = changelog_states(await read_to_end(servers, names.changelog))
    lists = {decode_list(record.value).list_id for record in await read_to_end(servers, names.lists)}
    letters = [DeadLetter.from_headers(r.headers) for r in await read_to_end(servers, names.dead_letters)]
    buried = {(letter.partition, letter.offset) for letter in letters}
    fold = PureFold(await read_to_end(servers, names.events))
    for partition, offset in fold.dead:
        assert offset >= offsets.get(partition, 0) or (partition, offset) in buried
    for user_id in fold.users:
        end = offsets.get(fold.partition(user_id), 0)
        sequence = fold.sequence(user_id, end - 1)
        state = states.get(user_id)
        if state is None:
            assert not sequence, f"{user_id}: events below the committed offset {end} are in no state"
            continue
        if sequence:
            assert state.offset >= sequence[-1][0], f"{user_id}: state is behind the committed offset {end}"
        check_state(fold, user_id, state)
        assert state.unserved or list_id(user_id, state.event_id) in lists, (
            f"{user_id}: served without a list"
        )


def check_state(fold: PureFold, user_id: str, state: UserState) -> None:
    """A state is the fold of its user's events up to the last it holds."""
    sequence = fold.sequence(user_id, state.offset)
    assert (bytes(state.records), bytes(state.videos)) == packed(event for _, event in sequence), user_id
    assert state.event_id == sequence[-1][1].event_id


def changelog_states(records: Iterable[ConsumerRecord]) -> dict[str, UserState]:
    """The states that a restore from these changelog records gives."""
    latest: dict[bytes, bytes | None] = {record.key: record.value for record in records}
    states = {}
    for key, value in latest.items():
        user_id = user_of_tail_key(key)
        if user_id is not None and value is not None:
            tail = read_tail(value)
            values = [latest.get(key) for key in stored_keys(user_id, tail)]
            states[user_id] = UserState.from_store(user_id, tail, values)
    return states


def stored_states(directory: Path, names: TopicNames) -> dict[str, UserState]:
    """The states in the local files of a daemon that has ended."""
    states: dict[str, UserState] = {}
    for path in (directory / names.changelog).iterdir():
        store = RocksStore(path, f"{names.group}/{names.events}/{path.name}")
        try:
            for user_id, _ in list(store.scan()):
                state = store.load(user_id)
                assert state is not None
                states[user_id] = state
        finally:
            store.close()
    return states


def packed(events: Iterable[Interaction]) -> tuple[bytes, bytes]:
    """Events as the records and the video ids of a history."""
    records, videos = b"", b""
    for event in events:
        video = event.video_id.encode()
        records += pack_event(event, event_digest(event.event_id), video)
        videos += video
    return records, videos
