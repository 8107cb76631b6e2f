"""Lists by sessions: calls that overlap are joined to batches, and batches follow each other without a pause."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import structlog

from mtgr.checkpoint import Checkpoint
from mtgr.errors import EngineFailed
from mtgr.requests import ListOutcome, ListRequest
from mtgr.serving.options import EngineOptions
from mtgr.serving.session_batches import Batch, BatchPlanner
from mtgr.serving.session_steps import NOTHING, decode_answer, encode_steps
from mtgr.serving.sessions import SessionTable

log = structlog.get_logger(__name__)

RunSteps = Callable[[bytes], asyncio.Future[bytes]]
"""Sends steps to the engine at once; the future has its answer, or EngineFailed. The engine takes them in order."""

BATCHES_UNDER_WAY: Final = 2
"""One that the engine computes, and one that is ready when that is done: a third would only wait there, closed to
requests that come meanwhile."""

BATCH_TOKENS: Final = 4096
"""New tokens after which a batch is sent: enough to keep a GPU busy while the next one is encoded."""

BATCH_REQUESTS: Final = 256
"""Users after whom a batch is sent, however little is new of each: reading what is cached of them keeps a GPU busy for
longer than the next ones take to be encoded."""

CPU_STEP_TOKENS: Final = 2048
"""Tokens of a step on a CPU: what lies between its products then stays in the processor's cache."""


@dataclass(slots=True, eq=False)
class _Waiting:
    """A request that somebody waits for."""

    request: ListRequest
    outcome: asyncio.Future[ListOutcome]


class SessionLists:
    """Makes lists through an engine of which it has the KV cache to itself.

    The batching window is the time that the batches under way take: an idle engine gets a request at once, a busy one
    gets all that have come since, so that latency is that of one where there is one, and throughput that of many where
    there are many.
    """

    def __init__(self, planner: BatchPlanner, run_steps: RunSteps) -> None:
        self.planner: Final = planner
        self._run_steps: Final = run_steps
        self._queue: Final[deque[_Waiting]] = deque()
        self._under_way: Final[set[asyncio.Task[None]]] = set()
        self._starting: asyncio.Handle | None = None
        self._failure: EngineFailed | None = None
        self._changing: Final = asyncio.Lock()
        self._held = False

    async def recommend(self, requests: Sequence[ListRequest]) -> list[ListOutcome]:
        """One outcome for each request, in their order; raises what the engine failed with."""
        if self._failure is not None:
            raise self._failure
        loop = asyncio.get_running_loop()
        waiting = [_Waiting(request, loop.create_future()) for request in requests]
        self._queue.extend(waiting)
        # not at once: callers that the loop wakes together share a batch
        if self._starting is None:
            self._starting = loop.call_soon(self._start)
        try:
            return [await one.outcome for one in waiting]
        finally:
            for one in waiting:
                one.outcome.cancel()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Finish the batches under way and begin no other one until this is left: what is cached may change in it."""
        async with self._changing:
            self._held = True
            try:
                while self._under_way:
                    await asyncio.wait(self._under_way)
                yield
            finally:
                self._held = False
                self._start()

    def forget_watchers(self, video_ids: Sequence[str]) -> None:
        """Videos have joined the catalog: what is cached of who has watched one is out of date."""
        self.planner.table.forget_watchers(video_ids)

    def fail(self, failure: EngineFailed) -> None:
        """End all that wait, and all that will ask."""
        self._failure = failure
        for task in self._under_way:
            task.cancel()
        while self._queue:
            _fail(self._queue.popleft(), failure)

    def _start(self) -> None:
        """Begin batches while there is something to do and the engine would not only queue them."""
        self._starting = None
        while self._queue and not self._held and len(self._under_way) < BATCHES_UNDER_WAY:
            while self._queue and self._queue[0].outcome.done():
                self._queue.popleft()  # given up before it was begun
            if not self._queue:
                return
            try:
                batch = self.planner.plan([one.request for one in self._queue])
            except Exception as error:  # noqa: BLE001  whatever it is, somebody waits
                self.fail(_as_failure(error))
                return
            taken = [self._queue.popleft() for _ in range(batch.taken)]
            answer = self._run_steps(encode_steps(batch.steps)) if batch.steps else None
            task = asyncio.create_task(self._finish(batch, taken, answer))
            self._under_way.add(task)
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if self._failure is None:
            self._start()

    async def _finish(
        self, batch: Batch, taken: Sequence[_Waiting], answer: asyncio.Future[bytes] | None
    ) -> None:
        """Give those who wait what the engine answers."""
        try:
            lists = NOTHING if answer is None else decode_answer(await answer)
            outcomes = dict(self.planner.read(batch, lists))
        except asyncio.CancelledError:
            failure = self._failure or EngineFailed("the engine was closed")
            for one in taken:
                _fail(one, failure)
            raise
        except Exception as error:  # noqa: BLE001  whatever it is, somebody waits
            failure = _as_failure(error)
            for one in taken:
                _fail(one, failure)
            self.fail(failure)
        else:
            for place, one in enumerate(taken):
                if not one.outcome.done():
                    one.outcome.set_result(outcomes[place])


def _as_failure(error: Exception) -> EngineFailed:
    if isinstance(error, EngineFailed):
        return error
    log.error("lists_not_made", exc_info=error)
    return EngineFailed(f"lists could not be made: {type(error).__name__}: {error}")


def session_planner(
    checkpoint: Checkpoint, options: EngineOptions, blocks: int, block_size: int
) -> BatchPlanner:
    """The planner of an engine that has just started and has so many blocks of cache."""
    from vllm.platforms import current_platform

    step_tokens = options.max_num_batched_tokens
    if current_platform.is_cpu():
        step_tokens = min(step_tokens, max(CPU_STEP_TOKENS, options.max_num_seqs))
    return BatchPlanner(
        checkpoint,
        SessionTable(blocks, block_size),
        step_tokens=step_tokens,
        step_requests=options.max_num_seqs,
        batch_tokens=BATCH_TOKENS,
        batch_requests=BATCH_REQUESTS,
    )


def _fail(one: _Waiting, failure: EngineFailed) -> None:
    if not one.outcome.done():
        one.outcome.set_exception(failure)
        one.outcome.exception()  # whoever waited may have gone
