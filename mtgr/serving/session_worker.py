"""The worker's side of sessions: steps in, lists out, on vLLM's model and in vLLM's KV cache."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import structlog
import torch
from torch import Tensor
from vllm.forward_context import set_forward_context
from vllm.platforms import current_platform

from mtgr.kernels.paged import PagedStep
from mtgr.requests import MAX_SLATE
from mtgr.serving.attention import layers_step
from mtgr.serving.session_steps import NO_ITEM, NOTHING, Answer, Step
from mtgr.serving.step_graphs import CudaGraphs, StepGraphs, pinned

if current_platform.is_cuda():
    from mtgr.kernels import token_ops_triton, top_k_triton

log = structlog.get_logger(__name__)

FAST_TOP_K: Final = 64
"""Up to so many videos a list is taken in passes over the logits, one for each; from there on PyTorch sorts faster."""

Numbers = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Parts:
    """A step's requests, unpacked; shapes as in `Step`."""

    cached: Numbers
    new: Numbers
    blocks: Numbers
    counts: Numbers
    slates: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, step: Step) -> Parts:
        """Read the arrays of a step."""
        cached = np.frombuffer(step.cached, np.int32)
        return cls(
            cached=cached,
            new=np.frombuffer(step.new, np.int32),
            blocks=np.frombuffer(step.blocks, np.int32).reshape(len(cached), -1),
            counts=np.frombuffer(step.counts, np.int32),
            slates=np.frombuffer(step.slates, np.bool_),
        )

    @property
    def starts(self) -> Numbers:
        """(requests + 1,) where the tokens of each begin in the step."""
        return np.concatenate([[0], np.cumsum(self.new)]).astype(np.int32)

    def next_token(self, chosen: npt.NDArray[np.intp], step: int) -> Parts:
        """Some of the requests, each with one token more, `step` tokens after those it came with."""
        ones = np.ones(len(chosen), np.int32)
        cached = (self.cached + self.new)[chosen] + np.int32(step)
        return Parts(cached, ones, self.blocks[chosen], ones, np.ones(len(chosen), np.bool_))


@dataclass(frozen=True, slots=True)
class PendingAnswer:
    """The answer to steps that may still be computed; lists: (2, n) int32 items and, bit for bit, float32 scores."""

    lists: Tensor | None
    done: torch.cuda.Event | None

    @property
    def is_there(self) -> bool:
        """Whether nothing is left to wait for."""
        return self.done is None or bool(self.done.query())  # type: ignore[no-untyped-call]

    def wait(self) -> Answer:
        """The answer, once it is there."""
        if self.lists is None:
            return NOTHING
        if self.done is not None:
            self.done.synchronize()
        items, scores = self.lists.numpy()
        return Answer(items.tobytes(), scores.tobytes())


class SessionWorker:
    """Runs steps on the model of a vLLM worker.

    The cache holds what `mtgr.serving.sessions` says it holds: this side remembers nothing but the cache, and the item
    of each token in it, by which lists leave out what was seen.
    """

    def __init__(self, worker: Any) -> None:
        self._model: Final = worker.get_model()
        self._vllm_config: Final = worker.vllm_config
        self._device: Final[torch.device] = worker.device
        layers = self._vllm_config.compilation_config.static_forward_context
        self._layers: Final = [name for name, layer in layers.items() if hasattr(layer, "kv_cache")]
        cache: Tensor = layers[self._layers[0]].kv_cache
        self.blocks, _, self.block_size, _ = cache.shape
        self._items: Final = torch.full(
            (self.blocks, self.block_size), NO_ITEM, dtype=torch.int32, device=self._device
        )
        self._graphs: StepGraphs | None = None
        if self._device.type == "cuda":
            with torch.inference_mode():
                self._graphs = self._captured()

    @torch.inference_mode()
    def launch(self, steps: list[Step]) -> PendingAnswer:
        """Begin to compute steps, in their order and after those begun before; a GPU goes on while this returns.

        The answer has the lists of the requests that end in these steps.
        """
        lists = [made for step in steps if (made := self._run(step)) is not None]
        if not lists:
            return PendingAnswer(None, None)
        items = torch.cat([listed for listed, _ in lists])
        scores = torch.cat([scored for _, scored in lists])
        both = torch.stack([items, scores.view(torch.int32)])
        if self._device.type != "cuda":
            return PendingAnswer(both, None)
        host = torch.empty(both.shape, dtype=both.dtype, pin_memory=True)
        host.copy_(both, non_blocking=True)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record()
        return PendingAnswer(host, done)

    def _run(self, step: Step) -> tuple[Tensor, Tensor] | None:
        """The items and scores of a step's lists, joined; None if no request ends in it."""
        parts = Parts.of(step)
        rows = np.frombuffer(step.rows, np.float32).reshape(int(parts.new.sum()), -1)
        hidden = self._forward(self._tensor(rows), self._tensor(np.frombuffer(step.items, np.int32)), parts)
        ending = np.flatnonzero(parts.counts)
        if not len(ending):
            return None
        counts, slates = parts.counts[ending], parts.slates[ending]
        last = parts.starts[1:][ending] - 1
        if len(last) < len(hidden):
            hidden = hidden[self._tensor(last)]
        logits = self._logits(hidden, parts, ending)
        if not slates.any():
            items, scores = self._best(logits, int(counts.max()))
        else:
            shape = len(counts), int(counts.max())
            items = torch.full(shape, NO_ITEM, dtype=torch.int32, device=self._device)
            scores = torch.zeros(shape, device=self._device)
            for chosen, make in ((slates, self._slates), (~slates, self._lists)):
                if chosen.any():
                    places, most = np.flatnonzero(chosen), int(counts[chosen].max())
                    where = self._tensor(places)
                    items[where, :most], scores[where, :most] = make(logits[where], parts, ending[places])
        if (counts == counts[0]).all():
            return items.flatten(), scores.flatten()
        wanted = self._tensor(np.arange(items.shape[1]) < counts[:, None])
        return items[wanted], scores[wanted]

    def _lists(self, logits: Tensor, parts: Parts, chosen: npt.NDArray[np.intp]) -> tuple[Tensor, Tensor]:
        """Lists made at once, as `_slates` makes others."""
        return self._best(logits, int(parts.counts[chosen].max()))

    @staticmethod
    def _best(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Places and log-probabilities of the k largest logits of each row, largest first: (n, k) int32, float32."""
        if logits.is_cuda and k <= FAST_TOP_K:
            values, items = top_k_triton.top_k(logits, k)
        else:
            values, items = logits.topk(k, dim=-1)
        return items.to(torch.int32), values - logits.logsumexp(-1, keepdim=True)

    def _slates(self, logits: Tensor, parts: Parts, chosen: npt.NDArray[np.intp]) -> tuple[Tensor, Tensor]:
        """Lists made video by video, from the logits (n, slots) of the first ones, of the chosen requests.

        Returns items (n, length) int32 and scores (n, length), of which a shorter list has less.
        """
        counts = parts.counts[chosen]
        listed: list[Tensor] = []
        scored: list[Tensor] = []
        going = np.arange(len(chosen))  # of the chosen: those whose lists go on
        for length in range(int(counts.max())):
            item, score = self._best(logits, 1)
            column = torch.full((len(chosen), 1), NO_ITEM, dtype=torch.int32, device=self._device)
            where = self._tensor(going)
            column[where] = item
            listed.append(column)
            scored.append(torch.zeros((len(chosen), 1), device=self._device).index_copy_(0, where, score))
            still = counts[going] > length + 1
            going = going[still]
            if not len(going):
                break
            token = item[self._tensor(np.flatnonzero(still))].squeeze(1)
            more = parts.next_token(chosen[going], length)
            hidden = self._forward(self._model.embed_input_ids(token).float(), token, more)
            logits = self._logits(hidden, more, np.arange(len(going)))
        return torch.cat(listed, 1), torch.cat(scored, 1)

    def _forward(self, rows: Tensor, items: Tensor, parts: Parts) -> Tensor:
        """The hidden states (tokens, d_model) of rows (tokens, lanes), whose keys and items are then in the cache."""
        starts, lengths = parts.starts, parts.cached + parts.new
        request = np.repeat(np.arange(len(parts.new)), parts.new)
        positions = np.arange(len(request)) - starts[request] + parts.cached[request]
        block, offset = np.divmod(positions, self.block_size)
        slots = parts.blocks[request, block].astype(np.int64) * self.block_size + offset
        self._items.view(-1)[self._tensor(slots)] = items
        if self._graphs is not None:
            hidden = self._graphs.run(rows, positions, slots, starts, lengths, parts.blocks)
            if hidden is not None:
                return hidden
        layers = layers_step(starts, lengths, self._tensor(parts.blocks))
        return self._compute(rows, self._tensor(positions), self._tensor(slots), layers)

    def _compute(self, rows: Tensor, positions: Tensor, slots: Tensor, layers: PagedStep) -> Tensor:
        with set_forward_context(
            dict.fromkeys(self._layers, layers),
            self._vllm_config,
            num_tokens=len(rows),
            slot_mapping=dict.fromkeys(self._layers, slots),
        ):
            hidden: Tensor = self._model(None, positions, inputs_embeds=rows)
        return hidden

    def _captured(self) -> StepGraphs:
        """Graphs for the steps of a stream, every kernel of which is compiled then."""
        config, scheduler = self._model.config, self._vllm_config.scheduler_config
        longest = config.max_length + MAX_SLATE
        graphs = StepGraphs(
            self._compute,
            lanes=config.row_width,
            requests=scheduler.max_num_seqs,
            blocks=-(-longest // self.block_size),
            step_tokens=scheduler.max_num_batched_tokens,
            device=self._device,
        )
        began = time.monotonic()
        captured = graphs.capture(CudaGraphs())
        torch.cuda.synchronize()
        log.info("graphs_captured", graphs=captured, seconds=round(time.monotonic() - began, 1))
        return graphs

    def _logits(self, hidden: Tensor, parts: Parts, chosen: npt.NDArray[np.intp]) -> Tensor:
        """(n, slots) float32 logits of the chosen requests' next videos, those in their histories left out."""
        logits: Tensor = self._model.compute_logits(hidden).float()
        tokens = (parts.cached + parts.new)[chosen]
        blocks = self._tensor(parts.blocks[chosen, : -(-int(tokens.max()) // self.block_size)])
        items = self._items[blocks].flatten(1)
        lengths = self._tensor(tokens)
        if logits.is_cuda:
            token_ops_triton.mask_seen(logits, items, lengths)
            return logits
        place = torch.arange(items.shape[1])
        seen = (place < lengths.unsqueeze(1)) & (items >= 0) & (items < logits.shape[1])
        # by the minimum, so that what is written where nothing was seen changes nothing
        return logits.scatter_reduce_(
            1, items.where(seen, 0).long(), torch.where(seen, -torch.inf, torch.inf), "amin"
        )

    def _tensor(self, array: npt.NDArray[Any]) -> Tensor:
        if self._device.type == "cuda":
            return pinned(array).to(self._device, non_blocking=True)
        return torch.from_numpy(array if array.flags.writeable else array.copy())
