"""Lists by vLLM's own scheduler: a request is a prompt of feature rows, found again by prefix caching."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from mtgr.errors import EngineFailed
from mtgr.requests import ListOutcome, ListRequest
from mtgr.serving.prompts import Prompt, PromptBuilder, refused_by_engine

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM


class PromptLists:
    """Makes lists through vLLM's AsyncLLM: the whole history is sent each time, and vLLM batches across calls."""

    def __init__(
        self, llm: AsyncLLM, prompts: PromptBuilder, send: Callable[[Coroutine[Any, Any, Any]], object]
    ) -> None:
        """`send` gives the engine a message that nobody waits for."""
        self._llm: Final = llm
        self._prompts: Final = prompts
        self._send: Final = send
        self._ids: Final = itertools.count()
        self._waiting: Final[set[Any]] = set()

    async def recommend(self, requests: Sequence[ListRequest]) -> list[ListOutcome]:
        """One outcome for each request, in their order; raises EngineFailed if the engine breaks or is closed."""
        from vllm.exceptions import VLLMValidationError
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        llm = self._llm
        prompts, refusals = self._prompts.build(requests)
        outcomes: dict[int, ListOutcome] = dict(refusals)
        pending: dict[Any, Prompt] = {}
        try:
            async with self._held(whether=len(prompts) > 1 and not self._waiting):
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

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """What is cached may change in it: nothing is to be done for that, a prompt is found by its rows."""
        yield

    def forget_watchers(self, video_ids: Sequence[str]) -> None:
        """Videos have joined the catalog: who has watched one has other rows now, and another prefix."""

    def fail(self, failure: EngineFailed) -> None:
        """End all that wait."""
        for queue in self._waiting:
            queue.put(failure)

    @asynccontextmanager
    async def _held(self, *, whether: bool) -> AsyncIterator[None]:
        """Let an idle engine wait for the whole of a batch.

        It would begin with the first request alone, then take the few that came meanwhile: several steps, each
        of which costs more than many requests.
        """
        if not whether:
            yield
            return
        self._send(self._llm.engine_core.pause_scheduler_async(mode="keep", clear_cache=False))
        await asyncio.sleep(0)  # it is sent, before the requests
        try:
            yield
        finally:
            self._send(self._llm.engine_core.resume_scheduler_async())
