"""The sampler's mask over the videos a user has seen: they get no probability and take no place in a list."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from mtgr.serving.hf_config import model_config_of
from mtgr.serving.seen_argument import INDEX_DTYPE, SEEN_ARGUMENT

if TYPE_CHECKING:
    from vllm import SamplingParams


class SeenVideosMask(LogitsProcessor):  # type: ignore[misc]
    """Sets the logits of seen videos to -inf, before the sampler's log-softmax and top-k.

    An exception in here would end the engine with all its requests, so what a request brings is checked at
    admission, and an index outside the catalog is passed over.
    """

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._n_items = model_config_of(vllm_config.model_config.hf_config).n_items
        self._device = device
        self._seen: dict[int, bytes] = {}
        self._places: tuple[Tensor, Tensor] | None = None

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
        if process_dict_updates(self._seen, batch_update, self._of_request):
            counts = [len(seen) // INDEX_DTYPE.itemsize for seen in self._seen.values()]
            rows = np.repeat(np.fromiter(self._seen, np.int64, len(counts)), counts)
            columns = np.frombuffer(b"".join(self._seen.values()), INDEX_DTYPE).astype(np.int64)
            known = columns < self._n_items
            self._places = (
                torch.from_numpy(rows[known]).to(self._device),
                torch.from_numpy(columns[known]).to(self._device),
            )

    def apply(self, logits: Tensor) -> Tensor:
        """logits: (requests, n_items), changed in place."""
        if self._seen and self._places is not None:
            logits[self._places] = -torch.inf
        return logits

    @staticmethod
    def _of_request(params: SamplingParams, _prompt: list[int] | None, _output: list[int]) -> bytes | None:
        seen: bytes = (params.extra_args or {}).get(SEEN_ARGUMENT, b"")
        return seen or None  # vLLM asks for the truth of what it keeps
