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
from mtgr.serving import step_places
from mtgr.serving.session_steps import NO_ITEM, NOTHING, Answer, Step
from mtgr.serving.sessions import NULL_BLOCK
from mtgr.serving.step_graphs import CudaGraphs, StepGraphs
from mtgr.serving.step_inputs import HostStep, StepInputs, inputs_on

if current_platform.is_cuda():
    from mtgr.kernels import token_ops_triton, top_k_triton

log = structlog.get_logger(__name__)

FAST_TOP_K: Final = 64
"""Up to so many videos a list is taken in passes over the logits, one for each; from there on PyTorch sorts faster."""

Numbers = npt.NDArray[np.int32]
Places = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked of a step's requests: the length of each list, 0 where more of the request follows, and its way."""

    counts: Numbers
    slates: npt.NDArray[np.bool_]


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
        step_places.warm_up()
        self._graphs: StepGraphs | None = None
        if self._device.type == "cuda":
            with torch.inference_mode():
                self._graphs = self._captured()
                self._warm_up()

    @torch.inference_mode()
    def launch(self, steps: list[Step]) -> PendingAnswer:
        """Begin to compute steps, in their order and after those begun before; a GPU goes on while this returns.

        The answer has the lists of the requests that end in these steps.
        """
        lists = [made for step in steps if (made := self._run(step)) is not None]
        if not lists:
            return PendingAnswer(None, None)
        items, scores = lists[0] if len(lists) == 1 else map(torch.cat, zip(*lists, strict=True))
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
        new = np.frombuffer(step.new, np.int32)
        tokens = np.frombuffer(step.items, np.int32)
        host = HostStep(
            rows=np.frombuffer(step.rows, np.float32).reshape(len(tokens), -1),
            items=tokens,
            cached=np.frombuffer(step.cached, np.int32),
            new=new,
            blocks=np.frombuffer(step.blocks, np.int32).reshape(len(new), -1),
        )
        wanted = Wanted(np.frombuffer(step.counts, np.int32), np.frombuffer(step.slates, np.bool_))
        hidden, inputs = self._forward(host)
        ending = np.flatnonzero(wanted.counts)
        if not len(ending):
            return None
        counts, slates = wanted.counts[ending], wanted.slates[ending]
        logits = self._last_logits(hidden, inputs.step, host, ending)
        if not slates.any():
            items, scores = self._best(logits, int(counts.max()))
        else:
            shape = len(counts), int(counts.max())
            items = torch.full(shape, NO_ITEM, dtype=torch.int32, device=self._device)
            scores = torch.zeros(shape, device=self._device)
            at_once = np.flatnonzero(~slates)
            if len(at_once):
                where, most = self._tensor(at_once), int(counts[at_once].max())
                items[where, :most], scores[where, :most] = self._best(logits[where], most)
            by_turns = np.flatnonzero(slates)
            where, most = self._tensor(by_turns), int(counts[by_turns].max())
            items[where, :most], scores[where, :most] = self._slates(
                logits[where], host, ending[by_turns], counts[by_turns]
            )
        if (counts == counts[0]).all():
            return items.flatten(), scores.flatten()
        # by places and not by a mask, whose truths a GPU would have to count first
        taken = self._tensor(np.flatnonzero(np.arange(items.shape[1]) < counts[:, None]))
        return items.flatten()[taken], scores.flatten()[taken]

    @staticmethod
    def _best(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Places and log-probabilities of the k largest logits of each row, largest first: (n, k) int32, float32.

        What the logits then are means nothing.
        """
        if logits.is_cuda and k <= FAST_TOP_K:
            values, items = top_k_triton.top_k(logits, k, normalized=True)
            return items, values
        values, items = logits.topk(k, dim=-1)
        # logsumexp, of which the largest is known, in the logits' own memory
        shifted = values - values[:, :1]
        total = logits.sub_(values[:, :1]).exp_().sum(-1, keepdim=True)
        return items.to(torch.int32), shifted - total.log()

    def _slates(
        self, logits: Tensor, host: HostStep, chosen: Places, counts: Numbers
    ) -> tuple[Tensor, Tensor]:
        """Lists made video by video, from the logits (n, slots) of the first ones, of the chosen requests.

        Returns items (n, length) int32 and scores (n, length), of which a shorter list has less.
        """
        listed: list[Tensor] = []
        scored: list[Tensor] = []
        lengths = (host.cached + host.new)[chosen]
        blocks = host.blocks[chosen]
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
            more = HostStep(
                rows=self._model.embed_input_ids(token).float(),
                items=token,
                cached=lengths[going] + np.int32(length),
                new=np.ones(len(going), np.int32),
                blocks=blocks[going],
            )
            hidden, inputs = self._forward(more)
            logits = self._last_logits(hidden, inputs.step, more, np.arange(len(going)))
        return torch.cat(listed, 1), torch.cat(scored, 1)

    def _forward(self, host: HostStep) -> tuple[Tensor, StepInputs]:
        """The hidden states (tokens, d_model) of a step, whose keys and items are then in the cache, and its inputs;
        both are valid until the next step."""
        if self._graphs is not None and (made := self._graphs.run(host)) is not None:
            return made
        inputs = inputs_on(self._device, host, self.block_size)
        return self._compute(inputs), inputs

    def _compute(self, inputs: StepInputs) -> Tensor:
        # what is padding goes where nobody looks: into the null block
        self._items.view(-1).scatter_(0, inputs.slots.clamp(min=NULL_BLOCK), inputs.items)
        with set_forward_context(
            dict.fromkeys(self._layers, inputs.step),
            self._vllm_config,
            num_tokens=len(inputs.rows),
            slot_mapping=dict.fromkeys(self._layers, inputs.slots),
        ):
            hidden: Tensor = self._model(None, inputs.positions, inputs_embeds=inputs.rows)
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
            block_size=self.block_size,
            step_tokens=scheduler.max_num_batched_tokens,
            device=self._device,
        )
        began = time.monotonic()
        captured = graphs.capture(CudaGraphs())
        torch.cuda.synchronize()
        log.info("graphs_captured", graphs=captured, seconds=round(time.monotonic() - began, 1))
        return graphs

    def _warm_up(self) -> None:
        """Compile what makes lists of hidden states: of one token in the null block, and for lists of all lengths."""
        one = np.ones(1, np.int32)
        self._run(
            Step(
                rows=bytes(4 * self._model.config.row_width),
                items=(NO_ITEM * one).tobytes(),
                cached=(0 * one).tobytes(),
                new=one.tobytes(),
                blocks=(NULL_BLOCK * one).tobytes(),
                counts=one.tobytes(),
                slates=bytes(1),
            )
        )
        logits = torch.zeros((1, self._model.config.n_slots), device=self._device)
        for power in range(FAST_TOP_K.bit_length()):  # kernels differ by powers of two
            if 1 << power <= logits.shape[1]:
                self._best(logits, 1 << power)

    def _last_logits(self, hidden: Tensor, step: PagedStep, host: HostStep, chosen: Places) -> Tensor:
        """(n, slots) float32 logits of what follows the last tokens of the chosen requests, what is in their histories
        left out."""
        lengths, blocks, last = step.lengths, step.block_table, step.query_starts[1:].long() - 1
        if len(chosen) < len(host.new):
            where = self._tensor(chosen)
            lengths, blocks, last = lengths[where], blocks[where], last[where]
        if len(last) < len(hidden):
            hidden = hidden[last]
        logits: Tensor = self._model.compute_logits(hidden).float()
        longest = int((host.cached + host.new)[chosen].max())
        items = self._items[blocks[:, : -(-longest // self.block_size)]].flatten(1)
        if logits.is_cuda:
            token_ops_triton.mask_seen(logits, items, lengths)
            return logits
        place = torch.arange(items.shape[1])
        seen = (place < lengths.unsqueeze(1)) & (items >= 0) & (items < logits.shape[1])
        # by the minimum, so that what is written where nothing was seen changes nothing
        return logits.scatter_reduce_(
            1, items.where(seen, 0).long(), torch.where(seen, -torch.inf, torch.inf), "amin"
        )

    def _tensor(self, array: Places) -> Tensor:
        host = torch.from_numpy(array)
        return host.pin_memory().to(self._device, non_blocking=True) if self._device.type == "cuda" else host
