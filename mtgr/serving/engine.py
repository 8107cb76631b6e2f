"""The vLLM engine of a checkpoint: requests in, lists out, on an engine process of its own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final, TypeVar

import structlog

from mtgr.additions import Addition, encode_additions
from mtgr.checkpoint import open_checkpoint
from mtgr.errors import EngineFailed
from mtgr.requests import AddedVideos, CacheStats, ListOutcome, ListRequest, ModelInfo, NewVideo
from mtgr.serving import event_rows
from mtgr.serving.additions import ADD_VIDEOS, pack_additions
from mtgr.serving.environment import prepare_vllm
from mtgr.serving.options import EngineOptions, engine_arguments
from mtgr.serving.ownership import end_engines_at_exit
from mtgr.serving.prompt_lists import PromptLists
from mtgr.serving.prompts import PromptBuilder
from mtgr.serving.served_config import check_served
from mtgr.serving.session_lists import SessionLists, session_planner
from mtgr.serving.step_channel import StepChannel
from mtgr.serving.worker_extension import OPEN_SESSIONS, SERVE_STEPS
from schemas.lists import ModelVersion

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

__all__ = ["EngineOptions", "RecommendationEngine"]

log = structlog.get_logger(__name__)

T = TypeVar("T")

_STOP_SECONDS: Final = 5.0
"""How long an engine process may take to end before it is killed."""

_ANSWER_SECONDS: Final = 60.0
"""How long an engine may take to answer what is no request for a list."""

_GLANCE_SECONDS: Final = 0.2
"""How often a caller who waits for such an answer looks whether the engine is still alive."""


class RecommendationEngine:
    """Recommends through vLLM; the event loop is never blocked, the model runs in another process.

    A request is a user's whole history. What of it is sent, and how what was computed before is found again, is the
    matter of the way that `EngineOptions.scheduling` names.
    """

    def __init__(self, options: EngineOptions) -> None:
        """InputError if the checkpoint is wrong or none that is served; its weights are checked at `start`."""
        self.options: Final = options
        self._checkpoint: Final = open_checkpoint(options.checkpoint)
        check_served(self._checkpoint.config, str(options.checkpoint))
        self._llm: AsyncLLM | None = None
        self._lists: SessionLists | PromptLists | None = None  # while there is an engine
        self._channel: StepChannel | None = None  # where lists are made by sessions
        self._calls: Final[set[asyncio.Task[Any]]] = set()
        # held from the moment the catalog has new videos until the model has them: a prompt that was made between
        # would leave in the cache what the model made of their empty places
        self._adding: Final = asyncio.Lock()
        self._additions: Final[list[Addition]] = []
        self._joined = 0  # how many of them the engine has for sure

    @property
    def model(self) -> ModelVersion:
        """Which model makes the lists."""
        return ModelVersion(self._checkpoint.name, self._checkpoint.version)

    async def start(self) -> ModelInfo:
        """Start the engine process and wait until it serves; what it serves is returned.

        May be called again after a failure, and then has the videos that were added before. Raises InputError if the
        checkpoint or the options are wrong, and EngineFailed if vLLM does not come up.
        """
        await self.close()
        began = time.monotonic()
        llm = await _in_thread(self._start, undo=_shut_down)
        self._llm = llm
        try:
            async with self._adding:
                self._joined = 0
                # vLLM asks this at the first request, if not before
                await self._answer(llm, llm.get_supported_tasks())
                self._lists = await self._open(llm)
                await self._join()
        except EngineFailed:
            await self.close()
            raise
        log.info(
            "engine_process_started",
            seconds=round(time.monotonic() - began, 1),
            model=self._checkpoint.name,
            version=self._checkpoint.version,
            pids=self.process_ids,
            videos_added=len(self._additions),
        )
        return self._checkpoint.info

    async def recommend(self, requests: Sequence[ListRequest]) -> list[ListOutcome]:
        """One outcome for each request, in their order; a request the model cannot serve gets a refusal.

        Calls may overlap: vLLM batches across them. Raises EngineFailed if the engine breaks or is closed.
        """
        async with self._adding:
            self._started()
            await self._join()
            lists = self._lists
            assert lists is not None
        return await lists.recommend(requests)

    async def add_videos(self, videos: Sequence[NewVideo]) -> AddedVideos:
        """Let new videos be recommended, as long as there are spare places; a restarted engine has them too.

        Lists under way are finished, those asked for meanwhile wait. Raises ValueError for attributes that are none,
        before any video is added, and EngineFailed if the engine breaks: after its restart it has them.
        """
        async with self._adding:
            self._started()
            lists = self._lists
            assert lists is not None
            async with lists.alone():
                additions, outcome = encode_additions(
                    videos, self._checkpoint.catalog, self._checkpoint.config
                )
                self._additions.extend(additions)
                lists.forget_watchers([video.video_id for video in videos])
                await self._join()
        return outcome

    async def close(self) -> None:
        """Stop the engine process; requests under way get EngineFailed. Calling it again does nothing."""
        llm, self._llm = self._llm, None
        if llm is None:
            return
        lists, self._lists = self._lists, None
        if lists is not None:
            lists.fail(EngineFailed("the engine was closed"))
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()
        for call in self._calls:
            call.cancel()
        if llm.output_handler is not None:
            llm.output_handler.cancel()  # else it logs the end of its engine as an error
        await asyncio.to_thread(_shut_down, llm)

    async def call_workers(self, method: str | Callable[..., Any], *arguments: Any) -> list[Any]:
        """What a method of vLLM's workers gives, of each; lists that are asked for meanwhile wait.

        Functions may be called instead of methods, with the worker first, where vLLM was allowed to take them. Raises
        EngineFailed if the engine breaks or does not answer.
        """
        llm = self._started()
        async with nullcontext() if self._channel is None else self._channel.paused():
            answers: list[Any] = await self._answer(llm, llm.collective_rpc(method, args=arguments))
            return answers

    @property
    def failed(self) -> bool:
        """Whether a started engine has broken; it can be started again."""
        if self._llm is None:
            return False
        return self._llm.errored or (self._channel is not None and self._channel.failure is not None)

    @property
    def process_ids(self) -> list[int]:
        """The engine's processes, none while it is not started."""
        if self._llm is None:
            return []
        manager = self._llm.engine_core.resources.engine_manager
        return [process.pid for process in manager.processes]

    def cache_stats(self) -> CacheStats | None:
        """What lies in the KV cache; None while the engine is not started, or where vLLM's own scheduler has it."""
        if not isinstance(self._lists, SessionLists):
            return None
        table = self._lists.planner.table
        return CacheStats(table.capacity, table.capacity - table.free_blocks, len(table), table.evictions)

    async def _open(self, llm: AsyncLLM) -> SessionLists | PromptLists:
        """What makes lists through an engine that has just started, with nothing cached."""
        if self.options.scheduling == "vllm":
            return PromptLists(llm, PromptBuilder(self._checkpoint), self._call)
        (blocks, block_size), *_ = await self.call_workers(OPEN_SESSIONS)
        planner = await asyncio.to_thread(  # a large catalog takes its time
            session_planner, self._checkpoint, self.options, blocks, block_size
        )

        channel = StepChannel(lambda address: self._call(llm.collective_rpc(SERVE_STEPS, args=(address,))))
        self._channel = channel
        await self._answer(llm, channel.open(self.options.tensor_parallel_size))
        return SessionLists(planner, channel.run)

    def _started(self) -> AsyncLLM:
        if self._llm is None:
            raise EngineFailed("the engine is not started")
        return self._llm

    async def _join(self) -> None:
        """Let the model have the new videos of the catalog, also where a call that added some was given up."""
        additions = self._additions[self._joined :]
        if additions:
            await self.call_workers(ADD_VIDEOS, pack_additions(additions))
            self._joined += len(additions)

    async def _answer(
        self, llm: AsyncLLM, call: Coroutine[Any, Any, T], *, seconds: float = _ANSWER_SECONDS
    ) -> T:
        """What the engine answers; EngineFailed if it does not. A dead engine would be waited for for ever."""
        task = self._call(call)
        deadline = time.monotonic() + seconds
        try:
            while not task.done() and not llm.errored and time.monotonic() < deadline:
                await asyncio.wait([task], timeout=_GLANCE_SECONDS)
        finally:
            task.cancel()
        if not task.done():
            reason = "died" if llm.errored else f"did not answer within {seconds:g} seconds"
            raise EngineFailed(f"the engine {reason}")
        if task.cancelled():
            raise EngineFailed("the engine was closed")
        if (error := task.exception()) is not None:
            raise EngineFailed(f"the engine failed: {error}") from error
        return task.result()

    def _call(self, call: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Send the engine a message; it need not be waited for: a dead engine gives no answer."""
        task = asyncio.create_task(call)
        self._calls.add(task)

        def forget(task: asyncio.Task[T]) -> None:
            self._calls.discard(task)
            if not task.cancelled():
                task.exception()  # that of a dead engine, of which the requests tell

        task.add_done_callback(forget)
        return task

    def _start(self) -> AsyncLLM:
        if not self.options.dummy_weights:
            self._checkpoint.verify()
        prepare_vllm(self.options.workers)
        event_rows.warm_up()
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments = engine_arguments(self.options, self._checkpoint)
        end_engines_at_exit()
        try:
            return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
        except Exception as error:  # whatever vLLM raises, it has not come up
            raise EngineFailed(f"vLLM did not start: {error}") from error


def _shut_down(llm: AsyncLLM) -> None:
    llm.shutdown(_STOP_SECONDS)


async def _in_thread(function: Callable[[], T], *, undo: Callable[[T], None]) -> T:
    """What a blocking function gives, from a thread that does not keep the process from ending.

    A caller that is cancelled does not wait; what the function gives after that is undone.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    # popped, not kept: vLLM holds on to errors that it has caught, and they to the frames of this thread
    given: list[T] = []

    def deliver(error: BaseException | None) -> None:
        if done.cancelled():
            if given:
                threading.Thread(target=undo, args=(given.pop(),), name="engine-undo").start()
        elif error is not None:
            done.set_exception(error)
        else:
            done.set_result(None)

    def work() -> None:
        failure = None
        try:
            given.append(function())
        except BaseException as error:  # noqa: BLE001  it is the caller's
            failure = error
        try:
            loop.call_soon_threadsafe(deliver, failure)
        except RuntimeError:  # the loop is closed, nobody waits
            if given:
                undo(given.pop())

    threading.Thread(target=work, name="engine-start", daemon=True).start()
    await done
    return given.pop()
