"""Requests to the steps that an engine's workers run, and what they answer to lists: only what is new is sent."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mtgr.admission import admit, check_count, looks_sound, refusal
from mtgr.attributes import unpack_attributes
from mtgr.checkpoint import Checkpoint
from mtgr.errors import RequestRefused
from mtgr.features import NO_TIME, RowEncoder
from mtgr.history import RECORD_BYTES, RECORD_DTYPE
from mtgr.requests import ListOutcome, ListRefusal, ListRequest, ListResult
from mtgr.serving.event_rows import EventRows, NewEvents
from mtgr.serving.session_steps import NO_ITEM, Answer, Step
from mtgr.serving.sessions import NULL_BLOCK, Session, SessionTable

_TIMESTAMP: Final = struct.Struct("<q")
_ID_BYTES: Final = struct.Struct("<H")


@dataclass(frozen=True, slots=True)
class Piece:
    """What is new of one request."""

    place: int  # of the request among those that were planned
    request: ListRequest
    session: Session
    events: int  # of the whole history
    first: int  # event that is computed first
    video_start: int  # byte at which its video id begins
    cached: int  # tokens before it
    profile: dict[str, Any] | None  # of the user, where that is to be computed too

    @property
    def fresh(self) -> bool:
        """Whether nothing of the user is cached, the profile neither."""
        return self.profile is not None


@dataclass(slots=True)
class Batch:
    """Some requests' work for the engine, and the refusals of those it has none of.

    taken: how many of the requests it answers, from the first on: the others have no room in the cache beside them.
    """

    taken: int
    pieces: list[Piece] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    refusals: dict[int, ListRefusal] = field(default_factory=dict)
    tokens: int = 0


class BatchPlanner:
    """Decides what is computed, where it lies and in which steps, for one checkpoint and the cache of its engine."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        table: SessionTable,
        *,
        step_tokens: int,
        step_requests: int,
        batch_tokens: int,
        batch_requests: int,
    ) -> None:
        """A batch has at most so many tokens, or one request, and requests; and so has a step."""
        self.table: Final = table
        self._config: Final = checkpoint.config
        self._catalog: Final = checkpoint.catalog
        self._events: Final = EventRows(checkpoint.config, checkpoint.catalog)
        self._profiles: Final = RowEncoder(checkpoint.config, checkpoint.catalog)
        self._step_tokens: Final = step_tokens
        self._step_requests: Final = step_requests
        self._batch_tokens: Final = batch_tokens
        self._batch_requests: Final = batch_requests

    def plan(self, requests: Sequence[ListRequest]) -> Batch:
        """The batch of the first requests, as many as fit; it must be sent before the next one is planned.

        Every request is checked here, since one that fails inside a worker fails all the others of its batch.
        """
        batch = self._match(requests)
        try:
            rows, items = self._encode(batch)
        except ValueError:
            self._refuse_corrupt(requests, batch)
            rows, items = self._encode(batch)
        staying = {piece.session for piece in batch.pieces}
        for piece in batch.pieces:
            self.table.trim(piece.session, self._tokens(piece.request))
        for piece in batch.pieces:
            self.table.reserve(piece.session, self._tokens(piece.request), staying=staying)
        batch.steps.extend(self._steps(batch, rows, items))
        return batch

    def read(self, batch: Batch, answer: Answer) -> Iterator[tuple[int, ListOutcome]]:
        """The outcomes of a batch by the places of their requests."""
        yield from batch.refusals.items()
        video_ids = self._catalog.video_ids
        items = np.frombuffer(answer.items, np.int32).tolist()
        scores = np.frombuffer(answer.scores, np.float32)
        finite = np.isfinite(scores)
        all_finite = bool(finite.all())
        listed = scores.tolist()
        end = 0
        for piece in batch.pieces:
            begin, end = end, end + piece.request.count
            if not all_finite and not finite[begin:end].all():
                yield piece.place, refusal(RequestRefused("the model's scores are not finite"))
                continue
            yield (
                piece.place,
                ListResult(
                    video_ids=[video_ids[item] for item in items[begin:end]],
                    scores=listed[begin:end],
                    sequence_length=piece.events,
                    cached_tokens=piece.cached,
                ),
            )

    def _match(self, requests: Sequence[ListRequest]) -> Batch:
        """Find the sessions of requests and what is new to them, until the batch is full."""
        batch = Batch(taken=0)
        blocks = 0
        users: set[str] = set()
        for place, request in enumerate(requests):
            if request.user_id in users:
                break  # a user's later request goes on from what the earlier one leaves
            if len(users) == self._batch_requests:
                break
            try:
                self._check(request)
                session = self.table.find(request)
                new = len(request.records) // RECORD_BYTES + 1
                if session is not None:
                    new = max(1, new - session.events - 1)
                blocks += self.table.blocks_of(self._tokens(request))
                if blocks > self.table.capacity or (batch.tokens and batch.tokens + new > self._batch_tokens):
                    break
                piece = self._piece(place, request, session)
            except RequestRefused as error:
                batch.refusals[place] = refusal(error)
            else:
                users.add(request.user_id)
                batch.pieces.append(piece)
                batch.tokens += new
            batch.taken += 1
        return batch

    def _check(self, request: ListRequest) -> None:
        """RequestRefused as `admit` and `check_count` refuse, for what can be told without a look at every event."""
        events = len(request.records) // RECORD_BYTES
        if looks_sound(request, self._config) and request.count + events <= len(self._catalog):
            return
        history, _ = admit(request, self._config)
        seen = np.unique(self._catalog.indices(history.video_ids))
        check_count(request.count, int((seen < len(self._catalog)).sum()), len(self._catalog))

    def _piece(self, place: int, request: ListRequest, session: Session | None) -> Piece:
        """What is new of a request to its session; that is then as it will be once this is computed."""
        records, events = request.records, len(request.records) // RECORD_BYTES
        profile = None
        if session is None:
            try:
                profile = unpack_attributes(request.profile)
            except ValueError as error:
                raise RequestRefused(f"profile is corrupt: {error}") from None
            session = self.table.begin(request.user_id, request.profile)
        first, video_start = session.events, session.video_bytes
        if first == events:  # nothing is new: the last token is computed again
            first -= 1
            video_start -= _ID_BYTES.unpack_from(records, first * RECORD_BYTES + _ID_OFFSET)[0]
        cached = first + 1 if profile is None else 0
        session.extend(request)
        return Piece(place, request, session, events, first, video_start, cached, profile)

    def _encode(self, batch: Batch) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
        """The rows and items of all tokens of a batch; ValueError if some request's events are corrupt."""
        pieces = batch.pieces
        fresh = np.array([piece.fresh for piece in pieces], np.bool_)
        counts = np.array([piece.events - piece.first for piece in pieces], np.int64)
        lengths = counts + fresh
        ends = np.cumsum(lengths)
        total = int(ends[-1]) if pieces else 0
        rows = np.empty((total, self._config.row_width), np.float32)
        items = np.empty(total, np.int32)
        events = NewEvents(
            records=b"".join([memoryview(one.request.records)[one.first * RECORD_BYTES :] for one in pieces]),
            videos=b"".join([memoryview(one.request.videos)[one.video_start :] for one in pieces]),
            counts=counts,
            video_bytes=np.array([len(one.request.videos) - one.video_start for one in pieces], np.int64),
            before_ms=np.array([_time_before(piece) for piece in pieces], np.int64),
            rows=ends - counts,
        )
        for user, video_id in self._events.encode(events, rows, items):
            pieces[user].session.unknown.add(video_id)
        if fresh.any():
            profiles = (ends - lengths)[fresh]
            items[profiles] = NO_ITEM
            rows[profiles] = self._profiles.encode_profiles(
                [piece.profile for piece in pieces if piece.profile is not None]
            )
        return rows, items

    def _refuse_corrupt(self, requests: Sequence[ListRequest], batch: Batch) -> None:
        """Take the requests out of a batch that cannot be decoded; the others begin anew."""
        for piece in batch.pieces:
            self.table.forget(piece.session.user_id)
        sound: list[Piece] = []
        for piece in batch.pieces:
            try:
                admit(piece.request, self._config)
            except RequestRefused as error:
                batch.refusals[piece.place] = refusal(error)
            else:
                sound.append(self._piece(piece.place, piece.request, None))
        batch.pieces = sound
        batch.tokens = sum(piece.events + 1 for piece in sound)

    def _tokens(self, request: ListRequest) -> int:
        """Tokens that a request's history has, and the videos of a slate that are computed after it."""
        return len(request.records) // RECORD_BYTES + (request.count if request.strategy == "slate" else 1)

    def _steps(
        self, batch: Batch, rows: npt.NDArray[np.float32], items: npt.NDArray[np.int32]
    ) -> Iterator[Step]:
        """Cut the tokens of a batch, in their order, into steps; a request that is too long has parts in several."""
        parts: list[
            tuple[Piece, int, int, bool]
        ] = []  # tokens cached before and new ones, and whether it ends there
        begin = end = 0
        for piece in batch.pieces:
            cached, left = piece.cached, piece.events - piece.first + piece.fresh
            while left:
                if end - begin == self._step_tokens or len(parts) == self._step_requests:
                    yield _step(parts, rows[begin:end], items[begin:end])
                    parts, begin = [], end
                new = min(left, self._step_tokens - (end - begin))
                parts.append((piece, cached, new, new == left))
                cached, left, end = cached + new, left - new, end + new
        if parts:
            yield _step(parts, rows[begin:end], items[begin:end])


_ID_OFFSET: Final[int] = RECORD_DTYPE.fields["video_id_bytes"][1]  # type: ignore[index]
_TIME_OFFSET: Final[int] = RECORD_DTYPE.fields["timestamp_ms"][1]  # type: ignore[index]


def _time_before(piece: Piece) -> int:
    """When the event before the first one of a piece was."""
    if not piece.first:
        return NO_TIME
    time: int = _TIMESTAMP.unpack_from(
        piece.request.records, (piece.first - 1) * RECORD_BYTES + _TIME_OFFSET
    )[0]
    return time


def _step(
    parts: Sequence[tuple[Piece, int, int, bool]],
    rows: npt.NDArray[np.float32],
    items: npt.NDArray[np.int32],
) -> Step:
    tables = [piece.session.blocks for piece, _, _, _ in parts]
    lengths = np.array([len(table) for table in tables])
    blocks = np.full((len(parts), lengths.max()), NULL_BLOCK, np.int32)
    blocks[np.arange(blocks.shape[1]) < lengths[:, None]] = np.fromiter(
        itertools.chain.from_iterable(tables), np.int32, lengths.sum()
    )
    return Step(
        rows=rows.tobytes(),
        items=items.tobytes(),
        cached=_numbers([cached for _, cached, _, _ in parts]),
        new=_numbers([new for _, _, new, _ in parts]),
        blocks=blocks.tobytes(),
        counts=_numbers([piece.request.count if ends else 0 for piece, _, _, ends in parts]),
        slates=bytes([piece.request.strategy == "slate" for piece, _, _, _ in parts]),
    )


def _numbers(values: list[int]) -> bytes:
    return np.array(values, np.int32).tobytes()
