"""The vLLM engine of a checkpoint: requests in, lists out, on an engine process of its own."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

import structlog

from mtgr.checkpoint import open_checkpoint
from mtgr.errors import EngineFailed
from mtgr.requests import ListOutcome, ListRequest, ModelInfo
from mtgr.serving.options import EngineOptions, engine_arguments, prepare_vllm
from mtgr.serving.prompts import Prompt, PromptBuilder, refused_by_engine
from schemas.lists import ModelVersion

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

__all__ = ["EngineOptions", "RecommendationEngine"]

log = structlog.get_logger(__name__)

T = TypeVar("T")

_STOP_SECONDS: Final = 5.0
"""How long an engine process may take to end before it is killed."""

_ANSWER_SECONDS: Final = 60.0
"""How long an engine that has come up may take for its first answer."""


class RecommendationEngine:
    """Recommends through vLLM's AsyncLLM; the event loop is never blocked, the model runs in another process.

    A request is a user's history. That the whole of it is sent each time, and that the engine finds what it
    has computed before by prefix caching, is this class's own matter.
    """

    def __init__(self, options: EngineOptions) -> None:
        """InputError if the checkpoint is wrong; its weights are checked at `start`."""
        self.options: Final = options
        self._checkpoint: Final = open_checkpoint(options.checkpoint)
        self._prompts: Final = PromptBuilder(self._checkpoint)
        self._ids: Final = itertools.count()
        self._llm: AsyncLLM | None = None
        self._waiting: Final[set[Any]] = set()
        self._calls: Final[set[asyncio.Task[None]]] = set()

    @property
    def model(self) -> ModelVersion:
        """Which model makes the lists."""
        return ModelVersion(self._checkpoint.name, self._checkpoint.version)

    async def start(self) -> ModelInfo:
        """Start the engine process and wait until it serves; what it serves is returned.

        May be called again after a failure. Raises InputError if the checkpoint or the options are wrong,
        and EngineFailed if vLLM does not come up.
        """
        await self.close()
        began = time.monotonic()
        llm = await _in_thread(self._start, undo=_shut_down)
        self._llm = llm
        try:
            # vLLM asks this at the first request, and would wait for ever for a dead engine's answer
            async with asyncio.timeout(_ANSWER_SECONDS):
                await llm.get_supported_tasks()
        except TimeoutError:
            await self.close()
            raise EngineFailed(f"the engine did not answer within {_ANSWER_SECONDS:g} seconds") from None
        log.info(
            "engine_process_started",
            seconds=round(time.monotonic() - began, 1),
            model=self._checkpoint.name,
            version=self._checkpoint.version,
            pids=self.process_ids,
        )
        return self._checkpoint.info

    async def recommend(self, requests: Sequence[ListRequest]) -> list[ListOutcome]:
        """One outcome for each request, in their order; a request the model cannot serve gets a refusal.

        Calls may overlap: vLLM batches across them. Raises EngineFailed if the engine breaks or is closed.
        """
        llm = self._llm
        if llm is None:
            raise EngineFailed("the engine is not started")
        from vllm.exceptions import VLLMValidationError
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        prompts, refusals = self._prompts.build(requests)
        outcomes: dict[int, ListOutcome] = dict(refusals)
        pending: dict[Any, Prompt] = {}
        try:
            async with self._held(llm, whether=len(prompts) > 1 and not self._waiting):
                for prompt in prompts:
                    try:
                        queue = await llm.add_request(str(next(self._ids)), prompt.rows, prompt.params)
                    except VLLMValidationError as error:
                        outcomes[prompt.place] = refused_by_engine(error)
                    else:
                        pending[queue] = prompt
                        self._waiting.add(queue)
            for queue, prompt in list(pending.items()):
                outcomes[prompt.place] = self._prompts.read(prompt, await queue.get())
                del pending[queue]
                self._waiting.discard(queue)
        except EngineFailed:
            raise
        except Exception as error:
            # a socket that is closed under a call raises anything
            if llm.errored or isinstance(error, EngineDeadError | EngineGenerateError):
                raise EngineFailed(f"the engine died: {error}") from error
            raise
        finally:
            self._waiting.difference_update(pending)
            if pending and not llm.errored:
                with suppress(EngineDeadError):
                    await llm.abort([queue.request_id for queue in pending], internal=True)
        return [outcomes[place] for place in range(len(requests))]

    async def close(self) -> None:
        """Stop the engine process; requests under way get EngineFailed. Calling it again does nothing."""
        llm, self._llm = self._llm, None
        if llm is None:
            return
        for queue in self._waiting:
            queue.put(EngineFailed("the engine was closed"))
        for call in self._calls:
            call.cancel()
        if llm.output_handler is not None:
            llm.output_handler.cancel()  # else it logs the end of its engine as an error
        await asyncio.to_thread(_shut_down, llm)

    @property
    def failed(self) -> bool:
        """Whether a started engine has broken; it can be started again."""
        return self._llm is not None and self._llm.errored

    @property
    def process_ids(self) -> list[int]:
        """The engine's processes, none while it is not started."""
        if self._llm is None:
            return []
        manager = self._llm.engine_core.resources.engine_manager
        return [process.pid for process in manager.processes]

    @asynccontextmanager
    async def _held(self, llm: AsyncLLM, *, whether: bool) -> AsyncIterator[None]:
        """Let an idle engine wait for the whole of a batch.

        It would begin with the first request alone, then take the few that came meanwhile: several steps, each
        of which costs more than many requests.
        """
        if not whether:
            yield
            return
        self._call(llm.engine_core.pause_scheduler_async(mode="keep", clear_cache=False))
        await asyncio.sleep(0)  # it is sent, before the requests
        try:
            yield
        finally:
            self._call(llm.engine_core.resume_scheduler_async())

    def _call(self, call: Coroutine[Any, Any, None]) -> None:
        """Send the engine a message whose answer nobody waits for: a dead engine gives none."""
        task = asyncio.create_task(call)
        self._calls.add(task)

        def forget(task: asyncio.Task[None]) -> None:
            self._calls.discard(task)
            if not task.cancelled():
                task.exception()  # that of a dead engine, of which the requests tell

        task.add_done_callback(forget)

    def _start(self) -> AsyncLLM:
        self._checkpoint.verify()
        prepare_vllm()
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments = engine_arguments(self.options, self._checkpoint)
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
