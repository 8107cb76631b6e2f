"""The sampler's mask over the videos that a user has seen and that a slate has already: they get no probability."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from mtgr.serving.hf_config import model_config_of
from mtgr.serving.seen_argument import INDEX_DTYPE, SEEN_ARGUMENT

if TYPE_CHECKING:
    from vllm import SamplingParams


class SeenVideosMask(LogitsProcessor):  # type: ignore[misc]
    """Sets the logits of seen and of already listed videos to -inf, before the sampler's log-softmax and top-k.

    An exception in here would end the engine with all its requests, so what a request brings is checked at
    admission, and an index outside the catalog is passed over.
    """

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._n_slots = model_config_of(vllm_config.model_config.hf_config).n_slots
        self._device = device
        self._seen: dict[int, bytes] = {}
        self._seen_places: tuple[Tensor, Tensor] | None = None
        # of requests for more than one video: vLLM's own list of what it has sampled, which grows
        self._listed: dict[int, tuple[list[int]]] = {}

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """ValueError if a request's extra_args hold no whole indices; called where requests come in."""
        seen = (sampling_params.extra_args or {}).get(SEEN_ARGUMENT, b"")
        if not isinstance(seen, bytes) or len(seen) % INDEX_DTYPE.itemsize:
            raise ValueError(
                f"{SEEN_ARGUMENT} is wanted as bytes, {INDEX_DTYPE.itemsize} for each item index"
            )

    def is_argmax_invariant(self) -> bool:
        """A seen video may well be the likeliest."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the requests as they enter, leave and move within the batch."""
        process_dict_updates(self._listed, batch_update, self._list_of_request)
        if process_dict_updates(self._seen, batch_update, self._seen_by_request):
            columns = np.frombuffer(b"".join(self._seen.values()), INDEX_DTYPE).astype(np.int64)
            counts = [len(seen) // INDEX_DTYPE.itemsize for seen in self._seen.values()]
            self._seen_places = self._places(list(self._seen), counts, columns)

    def apply(self, logits: Tensor) -> Tensor:
        """logits: (requests, n_slots), changed in place."""
        if self._seen and self._seen_places is not None:
            logits[self._seen_places] = -torch.inf
        if self._listed:
            lists = [listed for (listed,) in self._listed.values()]
            columns = np.fromiter(itertools.chain.from_iterable(lists), np.int64)
            logits[self._places(list(self._listed), list(map(len, lists)), columns)] = -torch.inf
        return logits

    def _places(
        self, requests: list[int], counts: list[int], columns: npt.NDArray[np.int64]
    ) -> tuple[Tensor, Tensor]:
        """The columns of each request, joined, as an index into the logits."""
        rows = np.repeat(np.array(requests, np.int64), counts)
        known = (columns >= 0) & (columns < self._n_slots)
        return (
            torch.from_numpy(rows[known]).to(self._device),
            torch.from_numpy(columns[known]).to(self._device),
        )

    # vLLM asks for the truth of what is kept, so nothing empty is

    @staticmethod
    def _seen_by_request(
        params: SamplingParams, _prompt: list[int] | None, _output: list[int]
    ) -> bytes | None:
        seen: bytes = (params.extra_args or {}).get(SEEN_ARGUMENT, b"")
        return seen or None

    @staticmethod
    def _list_of_request(
        params: SamplingParams, _prompt: list[int] | None, output: list[int]
    ) -> tuple[list[int]] | None:
        return (output,) if params.max_tokens != 1 else None
