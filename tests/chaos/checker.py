"""Proves from the topics alone what a run came to; it shares no code with the daemon but the schema's decoder.

A list is owed for every event that counts, and one list serves all events of its user up to its trigger. So no list is
lost if (a) in the end the last event of every user has its list, and (b) at whatever moment the changelog says of a
user that events were served, the list that served them stands in its topic. Each list must name an event that counted
and be made from the very history that the pure fold has after it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from answers import answer
from kept_states import Broken, KeptTail, KeptUser, kept_users, read_tail, user_of
from pure_fold import Histories, Record, User

from schemas.codecs import CONTENT_TYPE_HEADER, decode_list
from schemas.dead_letters import DeadLetter
from schemas.errors import UndecodableList
from schemas.lists import RecommendationList

Delivery = Literal["at_least_once", "exactly_once"]
_SHOWN = 20


class Kind(Enum):
    """What can be wrong."""

    LOST = "lost"
    """A list that is owed is not there, or an event or a dead letter is gone."""
    OUT_OF_ORDER = "out of order"
    """A list older than one that its maker had published for the user before."""
    DUPLICATE = "duplicate"
    """A list, or a dead letter, that was there before."""
    REWOUND = "rewound"
    """A list older than one that another owner of the partition had published."""
    FENCED = "fenced"
    """Something of a producer that was fenced, or outside of a transaction, can be seen."""
    WRONG = "wrong"
    """A list that is not the model's for the history at its trigger."""
    STATE = "state"
    """What is kept of a user is not the fold of the user's events."""
    SET_BACK = "set back"
    """A state in the changelog that is older than one before it."""
    OFFSET = "offset"
    """An offset was committed past what was durable."""


_ALLOWED: Mapping[Delivery, frozenset[Kind]] = {
    # consumers drop by list_id and trigger.offset what a crash repeats; a state set back must be mended by the end
    "at_least_once": frozenset({Kind.DUPLICATE, Kind.REWOUND, Kind.SET_BACK}),
    "exactly_once": frozenset(),
}


@dataclass(frozen=True)
class OffsetSample:
    """At one moment: the offsets that were committed and, asked for only after that, the changelog's ends."""

    committed: Mapping[int, int]
    changelog_ends: Mapping[int, int]


@dataclass
class Verdict:
    """What was found, by kind, and the figures beside it."""

    delivery: Delivery
    counts: Counter[Kind] = field(default_factory=Counter)
    examples: dict[Kind, list[str]] = field(default_factory=dict)
    figures: dict[str, int] = field(default_factory=dict)

    def found(self, kind: Kind, text: str) -> None:
        """Take note of one finding."""
        self.counts[kind] += 1
        shown = self.examples.setdefault(kind, [])
        if len(shown) < _SHOWN:
            shown.append(text)

    @property
    def failures(self) -> dict[Kind, list[str]]:
        """What must not be, with examples."""
        return {kind: shown for kind, shown in self.examples.items() if kind not in _ALLOWED[self.delivery]}


def made_by_model(value: RecommendationList) -> str:
    """Who made a list, as the model's version tells."""
    return value.model.version


class Checker:
    """Takes the topics in this order: events, dead letters, lists, changelog; then what stands beside them."""

    def __init__(
        self,
        delivery: Delivery,
        events_topic: str,
        owner: Callable[[RecommendationList], str] = made_by_model,
    ) -> None:
        """`owner` names which daemon made a list, and the how-manieth time that it had the partition."""
        self.verdict = Verdict(delivery)
        self.histories = Histories()
        self._topic = events_topic
        self._owner = owner
        self._answered: dict[str, set[int]] = {}  # by user: numbers of the events whose lists are there
        self._kept: dict[bytes, bytes] = {}
        self._lists = 0

    def read_events(self, records: Iterable[Record], sent: int | None = None) -> None:
        """Fold the events topic, which must hold at least as many records as were `sent` and acknowledged."""
        self.histories.fold(records)
        histories = self.histories
        if sent is not None and histories.records < sent:
            self._lost(f"{sent} events were acknowledged, and {histories.records} are in the topic")
        self.verdict.figures |= {
            "records": histories.records,
            "events": histories.events,
            "duplicate_events": histories.duplicates,
            "undecodable": len(histories.dead),
            "users": len(histories.users),
            "users_forgotten": histories.forgotten,
        }

    def read_dead_letters(self, records: Iterable[Record]) -> None:
        """Each record that is no event must be there; a letter of the generator answers the event that it names."""
        missing = set(self.histories.dead)
        seen: set[tuple[int, int]] = set()
        for record in records:
            letter = DeadLetter.from_headers(record.headers)
            source = (letter.partition, letter.offset)
            if source in seen:
                self.verdict.found(Kind.DUPLICATE, f"dead letter of {source}")
            seen.add(source)
            if letter.stage == "generate":
                self._answer_refused(record, letter.offset)
            elif source not in self.histories.dead:
                self.verdict.found(
                    Kind.WRONG, f"dead letter of {source}, which is an event: {letter.message}"
                )
            missing.discard(source)
        for source in sorted(missing):
            self._lost(f"dead letter of {source}")
        self.verdict.figures["dead_letters"] = len(seen)

    def _answer_refused(self, record: Record, offset: int) -> None:
        user_id = (record.key or b"").decode()
        user = self.histories.users.get(user_id)
        place = user.place(offset) if user is not None else None
        if place is None:
            self.verdict.found(
                Kind.WRONG, f"dead letter of a list of {user_id!r} at {offset}: no event there"
            )
        else:
            self._answered.setdefault(user_id, set()).add(place)
        self.verdict.figures["refused"] = self.verdict.figures.get("refused", 0) + 1

    def read_lists(self, records: Iterable[Record]) -> None:
        """Each list must be right, new, and in its user's order; `records` are those of a partition in order."""
        newest: dict[str, int] = {}
        newest_of: dict[tuple[str, str], int] = {}
        ids: dict[str, tuple[str, str]] = {}
        seen: set[tuple[str, str]] = set()
        for record in records:
            self._lists += 1
            try:
                value = decode_list(record.value, dict(record.headers).get(CONTENT_TYPE_HEADER))
            except UndecodableList as error:
                self.verdict.found(Kind.WRONG, f"list at {record.partition}:{record.offset}: {error}")
                continue
            user_id, trigger = value.user_id, value.trigger
            about = f"{user_id}, list at {record.partition}:{record.offset} after event {trigger.offset}"
            if wrong := self._wrong(record, value):
                self.verdict.found(Kind.WRONG, f"{about}: {wrong}")
            if ids.setdefault(value.list_id, (user_id, trigger.event_id)) != (user_id, trigger.event_id):
                self.verdict.found(Kind.WRONG, f"{about}: its list_id is also that of {ids[value.list_id]}")
            owner = self._owner(value)
            repeated = (user_id, value.list_id) in seen
            seen.add((user_id, value.list_id))
            if trigger.offset < newest_of.get((user_id, owner), -1):
                self.verdict.found(Kind.OUT_OF_ORDER, f"{about}, {owner}: after {newest_of[user_id, owner]}")
            elif repeated:
                self.verdict.found(Kind.DUPLICATE, f"{about}, {owner}")
            elif trigger.offset < newest.get(user_id, -1):
                kind = Kind.REWOUND if self.verdict.delivery == "at_least_once" else Kind.OUT_OF_ORDER
                self.verdict.found(kind, f"{about}, {owner}: after {newest[user_id]}")
            newest_of[user_id, owner] = max(trigger.offset, newest_of.get((user_id, owner), -1))
            newest[user_id] = max(trigger.offset, newest.get(user_id, -1))
        self.verdict.figures |= {"lists": self._lists, "lists_distinct": len(seen)}
        for user_id, user in self.histories.users.items():
            owed = user.owed
            if owed is not None and owed not in self._answered.get(user_id, ()):
                self._lost(
                    f"{user_id}: no list after the last event {user.event_ids[owed]} at "
                    f"{user.partition}:{user.offsets[owed]}"
                )

    def _wrong(self, record: Record, value: RecommendationList) -> str | None:
        """What is wrong with a list, None if nothing is; takes note of the events that it serves."""
        user, trigger = self.histories.users.get(value.user_id), value.trigger
        place = user.place(trigger.offset) if user is not None else None
        if user is None or place is None:
            return "no event that counts stands there"
        if (trigger.topic, trigger.partition, trigger.event_id) != (
            self._topic,
            user.partition,
            user.event_ids[place],
        ):
            return f"it names {trigger.topic}-{trigger.partition} and event {trigger.event_id}"
        self._answered.setdefault(value.user_id, set()).add(place)
        if record.key != value.user_id.encode():
            return f"its key is {record.key!r}"
        if value.sequence_length != user.lengths[place]:
            return f"it was made from {value.sequence_length} events, not {user.lengths[place]}"
        videos = [item.video_id for item in value.items]
        if not videos or videos != answer(user.digests[place], len(videos)):
            return "it is not the model's answer to that history"
        return None

    def read_changelog(self, records: Iterable[Record], samples: Sequence[OffsetSample] = ()) -> None:
        """Each state must be one that the fold has, and what it says was served must have its list.

        `records` are those of a partition in order, and all of them: what was compacted away cannot be checked. Below
        each sample's ends there must be a state with every event that it says was committed.
        """
        frontiers: dict[int, _Frontier] = {}
        newest: dict[str, int] = {}
        count = 0
        for record in records:
            count += 1
            frontier = frontiers.get(record.partition)
            if frontier is None:
                frontier = frontiers[record.partition] = self._frontier(record.partition, samples)
            frontier.before(record.offset)
            assert record.key is not None
            if record.value is None:
                self._kept.pop(record.key, None)
            else:
                self._kept[record.key] = record.value
            user_id = user_of(record.key)
            if user_id is None:
                continue
            if record.value is None:
                frontier.deleted(user_id)
                newest.pop(user_id, None)
                continue
            about = f"{user_id}, changelog at {record.partition}:{record.offset}"
            try:
                tail = read_tail(record.value)
            except Broken as broken:
                self.verdict.found(Kind.STATE, f"{about}: {broken}")
                continue
            if tail.offset < newest.get(user_id, -1):
                self.verdict.found(Kind.SET_BACK, f"{about}: from {newest[user_id]} to {tail.offset}")
            newest[user_id] = max(tail.offset, newest.get(user_id, -1))
            frontier.stored(user_id, tail.offset)
            if tail.event_id:
                self._check_tail(about, user_id, tail)
        for partition in self.histories.ends.keys() | frontiers.keys():
            frontier = frontiers.get(partition) or self._frontier(partition, samples)
            frontier.before(None)
        self.verdict.figures |= {"changelog_records": count, "offset_samples": len(samples)}
        self._check_state(self._kept, "changelog")

    def _frontier(self, partition: int, samples: Sequence[OffsetSample]) -> _Frontier:
        return _Frontier(partition, self.histories, samples, self.verdict)

    def _check_tail(self, about: str, user_id: str, tail: KeptTail) -> None:
        user = self.histories.users.get(user_id)
        place = user.place(tail.offset) if user is not None else None
        if user is None or place is None:
            self.verdict.found(Kind.STATE, f"{about}: no event that counts stands at {tail.offset}")
            return
        if (user.event_ids[place], user.lengths[place]) != (tail.event_id, tail.length):
            self.verdict.found(
                Kind.STATE,
                f"{about}: {tail.length} events to {tail.event_id}, where {user.lengths[place]} to "
                f"{user.event_ids[place]} counted",
            )
            return
        served = place - tail.unserved
        if served >= user.begin(place) and served not in self._answered.get(user_id, ()):
            self._lost(
                f"{about}: events to {user.event_ids[served]} at {user.offsets[served]} are called served, and "
                "there is no list"
            )

    def read_files(self, partition: int, values: Mapping[bytes, bytes]) -> None:
        """The local files of a partition's last owner must hold what the changelog comes to, key by key."""
        users = self.histories.users
        expected = {
            key: value for key, value in self._kept.items() if self._partition_of(key, users) == partition
        }
        for key in expected.keys() | values.keys():
            if expected.get(key) != values.get(key):
                what = "is missing" if key not in values else "differs" if key in expected else "is too much"
                self.verdict.found(Kind.STATE, f"files of partition {partition}: {key!r} {what}")

    @staticmethod
    def _partition_of(key: bytes, users: Mapping[str, User]) -> int | None:
        for name in (key[1:], key[1:-4]):
            if (user := users.get(name.decode(errors="replace"))) is not None:
                return user.partition
        return None

    def read_offsets(self, committed: Mapping[int, int]) -> None:
        """In the end every record must be committed, and no offset past the last."""
        for partition, end in self.histories.ends.items():
            offset = committed.get(partition, 0)
            if offset < end:
                self._lost(f"partition {partition}: committed to {offset} of {end}")
            elif offset > end:
                self.verdict.found(Kind.OFFSET, f"partition {partition}: {offset} is past the end {end}")

    def _check_state(self, values: Mapping[bytes, bytes], where: str) -> None:
        """The states under these keys must be the fold of all events, with nothing owed."""
        expected = {user_id for user_id, user in self.histories.users.items() if not user.is_empty}
        for user_id, kept in kept_users(values):
            user = self.histories.users.get(user_id)
            if isinstance(kept, Broken):
                self.verdict.found(Kind.STATE, f"{user_id}, {where}: {kept}")
            elif user is None or user.is_empty:
                self.verdict.found(Kind.STATE, f"{user_id}, {where}: nothing must be kept")
            elif wrong := _differs(user, kept):
                self.verdict.found(Kind.STATE, f"{user_id}, {where}: {wrong}")
            expected.discard(user_id)
        for user_id in sorted(expected):
            self.verdict.found(Kind.STATE, f"{user_id}, {where}: nothing is kept")

    def _lost(self, text: str) -> None:
        self.verdict.found(Kind.LOST, text)


class _Frontier:
    """How far the events of a partition are in the changelog, record by record."""

    def __init__(
        self, partition: int, histories: Histories, samples: Sequence[OffsetSample], verdict: Verdict
    ) -> None:
        self._partition = partition
        self._users = histories.users
        self._events = histories.counted.get(partition, [])
        self._verdict = verdict
        pairs = [
            (sample.changelog_ends[partition], sample.committed[partition])
            for sample in samples
            if partition in sample.changelog_ends and partition in sample.committed
        ]
        self._samples = sorted(set(pairs), reverse=True)
        self._next = 0  # the first event that is in no state yet
        self._stored: dict[str, int] = {}
        self._deleted: set[str] = set()

    def stored(self, user_id: str, offset: int) -> None:
        """A state with the user's events to an offset was written."""
        self._stored[user_id] = max(offset, self._stored.get(user_id, -1))

    def deleted(self, user_id: str) -> None:
        """The user's state was deleted."""
        self._deleted.add(user_id)

    def before(self, offset: int | None) -> None:
        """Judge the samples whose end is at or below this offset of the changelog, all that are left for None."""
        while self._samples and (offset is None or self._samples[-1][0] <= offset):
            end, committed = self._samples.pop()
            self._advance()
            if self._next < len(self._events) and self._events[self._next][0] < committed:
                event, user_id = self._events[self._next]
                self._verdict.found(
                    Kind.OFFSET,
                    f"partition {self._partition}: {committed} was committed when the changelog ended at {end}, "
                    f"without the event of {user_id} at {event}",
                )

    def _advance(self) -> None:
        while self._next < len(self._events):
            offset, user_id = self._events[self._next]
            if self._stored.get(user_id, -1) < offset and not self._is_forgotten(user_id, offset):
                return
            self._next += 1

    def _is_forgotten(self, user_id: str, offset: int) -> bool:
        forgotten = self._users[user_id].forgotten
        return user_id in self._deleted and bool(forgotten) and offset < forgotten[-1]


def _differs(user: User, kept: KeptUser) -> str | None:
    """In what a kept state is not the fold, None in nothing."""
    tail = kept.tail
    if (kept.records, kept.videos) != (bytes(user.records), bytes(user.videos)):
        return f"{len(kept.records) // 32} events are kept, not these {len(user.kept)}"
    if tail.unserved:
        return f"a list is still owed for {tail.unserved} events"
    if user.kept and (tail.offset, tail.event_id) != (user.offsets[-1], user.event_ids[-1]):
        return f"its last event is {tail.event_id} at {tail.offset}, not {user.event_ids[-1]}"
    if (tail.timestamp_ms, tail.session_id, tail.last_ms) != (
        user.timestamp_ms,
        user.session_id,
        user.last_ms,
    ):
        return f"time or session: {(tail.timestamp_ms, tail.session_id, tail.last_ms)}"
    if (kept.profile, kept.profile_ms) != (user.profile, user.profile_ms):
        return f"profile of {kept.profile_ms}, not of {user.profile_ms}"
    return None
