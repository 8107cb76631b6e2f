"""One partition's life: fold its events, say who is due a list, publish, hand over what a commit must make durable."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Sequence
from typing import Any, Final

from aiokafka import TopicPartition
from msgspec import Struct

from mtgr.config import capacity
from mtgr.requests import ListRequest, ListResult, Strategy
from schemas.codecs import CONTENT_TYPE_HEADER, decode_instruction
from schemas.dead_letters import REPLAYED_HEADER
from schemas.errors import Stage, UndecodableEvent
from schemas.events import Favorite, Forget, Like, Profile, Share, Watch
from schemas.lists import ModelVersion, RecommendationList, RecommendedVideo, TriggerEvent
from stream.dead_letters import DeadRecord
from stream.outgoing import OutgoingList
from stream.retention import Retention, RetentionRules
from stream.sequences import UserState, list_id
from stream.state import StateStore
from stream.state_cache import StateCache
from stream.stored import Change, CorruptState
from stream.triggers import TriggerQueue, TriggerRules

_SWEPT_USERS: Final = 500  # in one commit cycle: a millisecond or two
_TRACEPARENT: Final = "traceparent"
_TRACEPARENT_BYTES: Final = 256  # it is kept and sent on: W3C's has 55, and a header may have a megabyte
_KINDS: Final = (Watch, Like, Favorite, Share, Profile, Forget)
_TAGS: Final = {kind: str(kind.__struct_config__.tag) for kind in _KINDS}


class Phase(enum.Enum):
    """What may be done with a partition."""

    RESTORING = "restoring"  # its state is being read; nothing is folded
    RUNNING = "running"
    LEAVING = "leaving"  # it is being handed over: nothing new is begun
    CLOSED = "closed"  # it belongs to another daemon: whatever still comes back for it is dropped


class OversizedEvent(UndecodableEvent):
    """The value is longer than the daemon reads."""


class KeyMismatch(UndecodableEvent):
    """The record's key is not its user: the user's other events may be in another partition."""

    stage = "validate"


class PartitionSettings(Struct, frozen=True):
    """What every partition of a daemon is told."""

    rules: TriggerRules
    max_events: int
    list_length: int
    strategy: Strategy
    max_event_bytes: int
    cache_bytes: int
    model: ModelVersion
    retention: RetentionRules = RetentionRules()


class PendingList(Struct, frozen=True):
    """A list being made: for whom, after which event, and what its publication will settle.

    events: how many were folded in since the user's last list.
    """

    state: UserState
    request: ListRequest
    session_id: str | None
    trigger: TriggerEvent
    traceparent: bytes | None
    since_ms: int
    events: int


class CommitWork(Struct, frozen=True):
    """What one commit must make durable for one partition, and the source offset that it then covers.

    offset: None while nothing was read since the restore, though lists owed from before may be settled already.
    committed: the offset that was committed before, None if none was since the restore.
    lists: those which the states say were served, where they are not published yet.
    """

    partition: Partition
    changes: list[Change]
    states: list[UserState]
    dead: list[DeadRecord]
    lists: list[OutgoingList]
    offset: int | None
    committed: int | None
    nbytes: int


class FoldCounts(Struct):
    """What a batch of records turned out to be."""

    events: dict[str, int]
    """Valid events by type, duplicates included."""
    dead: dict[Stage, int]
    duplicates: int = 0
    out_of_order: int = 0
    """New events that are older than the one before of their user."""


class Partition:
    """The state of one assigned partition, from restore to revocation.

    It knows neither consumer nor producer: records are handed in, and what must be written is handed out.
    """

    def __init__(
        self,
        tp: TopicPartition,
        store: StateStore,
        settings: PartitionSettings,
        on_corrupt: Callable[[Partition, CorruptState], None],
    ) -> None:
        """`on_corrupt` is told when what is stored does not read back, and the partition is lost by that."""
        self.tp = tp
        self._on_corrupt = on_corrupt
        self._corrupt = False
        self.store = store
        self.phase = Phase.RESTORING
        self.triggers = TriggerQueue(settings.rules)
        self.cache = StateCache(store, settings.cache_bytes)
        self.next_offset: int | None = None  # of the source record to fold next
        self.uncommitted_bytes = 0
        self.in_flight = 0
        self.idle = asyncio.Event()  # no list of this partition is being made
        self.idle.set()
        self._retention = Retention(settings.retention)
        self._swept: str | None = None  # the user whom the pass under way has come to
        self._sweeping = False
        self._folded_bytes = 0
        self._settings = settings
        self._committed_offset: int | None = None
        self._dirty: dict[str, UserState] = {}
        self._dead: list[DeadRecord] = []
        self._lists: list[OutgoingList] = []

    @property
    def owed(self) -> int:
        """Users who wait for a list."""
        return len(self.triggers)

    def begin(self, users: int, owed: Sequence[str]) -> None:
        """The restore is complete: lists owed from before are due at once."""
        self.cache.users = users
        for user_id in owed:
            self.triggers.owe(user_id)
        self.phase = Phase.RUNNING

    def fold(self, records: Sequence[Any], now: float) -> FoldCounts:
        """Fold consumed records into the users' sequences, in order; what is no valid event becomes a dead letter."""
        counts = FoldCounts({}, {})
        try:
            self._fold(records, now, counts)
        except CorruptState as error:
            self.distrust(error)
        return counts

    def _fold(self, records: Sequence[Any], now: float, counts: FoldCounts) -> None:
        events = counts.events
        max_events = self._settings.max_events
        max_bytes = self._settings.max_event_bytes
        tags = _TAGS
        get_state, note, dirty = self.cache.get, self.triggers.note, self._dirty
        nbytes = other_bytes = 0
        headers: Sequence[tuple[str, bytes]] = ()
        content_type = traceparent = None
        replayed = False
        for record in records:
            value = record.value
            if record.headers != headers:  # most records have those of the one before
                headers = record.headers
                content_type = traceparent = None
                replayed = False
                for name, header in headers:
                    if name == CONTENT_TYPE_HEADER:
                        content_type = header
                    elif name == _TRACEPARENT and len(header or b"") <= _TRACEPARENT_BYTES:
                        traceparent = header
                    elif name == REPLAYED_HEADER:
                        replayed = True
            nbytes += len(value or b"")
            try:
                if value is not None and len(value) > max_bytes:
                    raise OversizedEvent(
                        f"the value has {len(value)} bytes: at most {max_bytes} (stream.max_event_bytes) are read"
                    )
                event = decode_instruction(value, content_type)
                user_id = event.user_id
                if record.key != user_id.encode():
                    raise KeyMismatch(_mismatch(record.key, user_id))
            except UndecodableEvent as error:
                self._dead.append(
                    DeadRecord.of(self.tp, record, error.stage, type(error).__name__, str(error))
                )
                counts.dead[error.stage] = counts.dead.get(error.stage, 0) + 1
                continue
            kind = tags[type(event)]
            events[kind] = events.get(kind, 0) + 1
            state = get_state(user_id)
            if record.offset <= state.offset:
                continue  # folded in before a restart that came between its commit and the offset's
            if type(event) is Profile:  # isinstance takes 5 % of the fold
                if state.fold_profile(event, record.timestamp):
                    dirty[user_id] = state
                    other_bytes += len(state.profile)
                else:
                    counts.duplicates += 1
                continue
            if type(event) is Forget:
                other_bytes -= state.nbytes
                if state.forget(record.offset):
                    dirty[user_id] = state
                other_bytes += state.nbytes
                self.cache.drop(state)
                continue
            before_ms = state.timestamp_ms
            folded = state.fold(event, record.offset, record.timestamp, traceparent, max_events)
            if folded or (replayed and state.owe_again(event.event_id, record.offset, record.timestamp)):
                dirty[user_id] = state
                note(user_id, now)
                if event.timestamp_ms < before_ms:
                    counts.out_of_order += 1
            else:
                counts.duplicates += 1
        if records:
            self.next_offset = records[-1].offset + 1
            self._retention.advance(records[-1].timestamp)
        self._folded_bytes += nbytes
        self.uncommitted_bytes += nbytes
        self.cache.grew(40 * len(records) + other_bytes)

    def take_due(self, now: float) -> PendingList | None:
        """Begin the list whose deadline is the oldest of those passed; None if nobody is due."""
        try:
            return self._take_due(now)
        except CorruptState as error:
            self.distrust(error)
            return None

    def _take_due(self, now: float) -> PendingList | None:
        while (user_id := self.triggers.take(now)) is not None:
            state = self.cache.get(user_id)
            if state.unserved:
                break
            self.triggers.release(user_id)  # the user was forgotten meanwhile
            self.cache.drop(state)
        else:
            return None
        if len(state) > capacity(self._settings.max_events):  # the model was changed for a shorter one
            state.cut(self._settings.max_events)
            self._dirty[user_id] = state
        events = state.ask()
        self.in_flight += 1
        self.idle.clear()
        return PendingList(
            state,
            ListRequest(
                user_id,
                bytes(state.records),
                bytes(state.videos),
                self._settings.list_length,
                self._settings.strategy,
                state.profile,
            ),
            state.session_id,
            TriggerEvent(self.tp.topic, self.tp.partition, state.offset, state.event_id, state.timestamp_ms),
            state.traceparent,
            state.unserved_since_ms,
            events,
        )

    def make_list(self, pending: PendingList, result: ListResult, now_ms: int) -> RecommendationList:
        """The wire form of a generated list."""
        return RecommendationList(
            list_id=list_id(pending.request.user_id, pending.trigger.event_id),
            user_id=pending.request.user_id,
            session_id=pending.session_id,
            items=tuple(
                RecommendedVideo(video_id, score, rank)
                for rank, (video_id, score) in enumerate(
                    zip(result.video_ids, result.scores, strict=True), start=1
                )
            ),
            model=self._settings.model,
            strategy=pending.request.strategy,
            generated_at_ms=now_ms,
            trigger=pending.trigger,
            sequence_length=result.sequence_length,
            cached_tokens=result.cached_tokens,
            latency_ms=float(max(now_ms - pending.since_ms, 0)),
        )

    def settle(self, pending: PendingList, unpublished: OutgoingList | None = None) -> None:
        """The list is durable, or dead-lettered for good, or `unpublished` and part of the next commit: it is owed no
        longer."""
        if unpublished is not None and not pending.state.is_empty:  # a forgotten user gets none
            self._lists.append(unpublished)
        state = pending.state
        if not state.is_empty:
            state.served()
            self._dirty[state.user_id] = state
        self._release(pending)

    def withdraw(self, pending: PendingList) -> None:
        """The list could not be made or published now: it stays owed, and is due again at once."""
        pending.state.withdraw()
        self._release(pending)
        self.triggers.owe(pending.state.user_id)

    def _release(self, pending: PendingList) -> None:
        self.in_flight -= 1
        if not self.in_flight:
            self.idle.set()
        self.triggers.release(pending.state.user_id)

    def bury(self, dead: DeadRecord) -> None:
        """Add a dead letter to the next commit."""
        self._dead.append(dead)

    def take_work(self) -> CommitWork | None:
        """Everything since the last call that a commit must make durable; None if nothing happened."""
        try:
            self._sweep()
        except CorruptState as error:
            self.distrust(error)
            return None
        offset = self.next_offset
        if not self._dirty and not self._dead and offset == self._committed_offset:
            return None
        states = list(self._dirty.values())
        self._dirty.clear()
        changes: list[Change] = []
        for state in states:
            changes.extend(state.changes())
        dead, self._dead = self._dead, []
        lists, self._lists = self._lists, []
        nbytes, self._folded_bytes = self._folded_bytes, 0
        return CommitWork(self, changes, states, dead, lists, offset, self._committed_offset, nbytes)

    def _sweep(self) -> None:
        """Look at the next few users and let go of those who were silent for too long; nobody who is owed a list."""
        retention = self._retention
        if not self._sweeping:
            if not retention.is_due:
                return
            retention.begin_pass()
            self._swept, self._sweeping = None, True
        tails = self.store.tails(self._swept, _SWEPT_USERS)
        for user_id, tail in tails:
            if not retention.lets_go(tail.last_ms, tail.nbytes) or tail.unserved:
                continue
            state = self.cache.get(user_id)  # it may have been heard of since
            if not state.pinned and state.last_ms < retention.horizon_ms and state.forget(state.offset):
                self._dirty[user_id] = state
        self._swept = tails[-1][0] if tails else None
        if len(tails) < _SWEPT_USERS:
            retention.end_pass()
            self._sweeping = False

    def committed(self, work: CommitWork) -> None:
        """The work is durable and its offset committed."""
        for state in work.states:
            state.writing -= 1
            if state.is_empty:
                self.cache.drop(state)
        self.uncommitted_bytes -= work.nbytes
        self._committed_offset = work.offset

    def write(self, changes: Sequence[Change], checkpoint: int) -> None:
        """Write what is in the changelog up to an offset to the store too."""
        try:
            self.store.apply(changes, checkpoint)
        except CorruptState as error:
            self.distrust(error)

    def distrust(self, error: CorruptState) -> None:
        """What is stored does not read back: the partition is lost, and its files go when it is closed."""
        self._corrupt = True
        self.lose()
        self._on_corrupt(self, error)

    def lose(self) -> None:
        """Nothing of the partition is folded, made or written any more: another daemon has it, or its files are bad."""
        self.phase = Phase.CLOSED
        self.idle.set()  # what is under way is dropped when it comes back

    def close(self) -> None:
        """Give the partition up; its files stay for the next time if they are good."""
        self.phase = Phase.CLOSED
        if self._corrupt:
            self.store.discard()
        else:
            self.store.close()


def _mismatch(key: bytes | None, user_id: str) -> str:
    shown = "no key" if key is None else f"the key {key[:128]!r}"
    return (
        f"the record has {shown}: expected its user_id {user_id!r}, so that a user's events share a partition"
    )
