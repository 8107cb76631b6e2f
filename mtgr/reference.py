"""The plain PyTorch generator: a full float32 forward for every list, exact and without a cache."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mtgr.admission import admit, check_count
from mtgr.checkpoint import Checkpoint, open_checkpoint
from mtgr.errors import RequestRefused
from mtgr.features import RowEncoder
from mtgr.history import History
from mtgr.requests import ListOutcome, ListRefusal, ListRequest, ListResult

_MAX_SCORES: Final = 1 << 25  # attention scores of one forward: 128 MiB of float32


class ReferenceRecommender:
    """Recommends the unseen videos most likely to be watched next, by the definition of the model."""

    def __init__(self, checkpoint: Checkpoint | str | os.PathLike[str]) -> None:
        """Load the model; InputError if the checkpoint is wrong."""
        opened = checkpoint if isinstance(checkpoint, Checkpoint) else open_checkpoint(checkpoint)
        self.checkpoint: Final = opened
        self._config: Final = opened.config
        self._encoder: Final = RowEncoder(opened.config, opened.catalog)
        self._model: Final = opened.load_model()

    def recommend(self, requests: Sequence[ListRequest]) -> list[ListOutcome]:
        """One outcome for each request, in their order; a request the model cannot serve gets a refusal."""
        outcomes: list[ListOutcome | None] = [None] * len(requests)
        admitted: dict[int, tuple[History, npt.NDArray[np.int64]]] = {}
        for place, request in enumerate(requests):
            try:
                history = admit(request, self._config)
                seen = np.unique(self.checkpoint.catalog.indices(history.video_ids))
                seen = seen[seen < self._config.n_items]
                check_count(request.count, len(seen), self._config)
            except RequestRefused as refusal:
                outcomes[place] = ListRefusal(type(refusal).__name__, str(refusal))
            else:
                admitted[place] = (history, seen)
        for places in self._batches({place: len(history) for place, (history, _) in admitted.items()}):
            log_probs = self._log_probs([admitted[place] for place in places])
            for place, row in zip(places, log_probs, strict=True):
                top = row.topk(requests[place].count)
                outcomes[place] = ListResult(
                    video_ids=[self.checkpoint.catalog.video_id(index) for index in top.indices.tolist()],
                    scores=top.values.tolist(),
                    sequence_length=len(admitted[place][0]),
                    cached_tokens=0,
                )
        return [outcome for outcome in outcomes if outcome is not None]

    def _batches(self, lengths: dict[int, int]) -> Iterator[list[int]]:
        """Places of requests, the like-long together so that little is padded, within the memory bound."""
        batch: list[int] = []
        for place in sorted(lengths, key=lengths.__getitem__):
            tokens = lengths[place] + 1
            if batch and (len(batch) + 1) * self._config.n_heads * tokens * tokens > _MAX_SCORES:
                yield batch
                batch = []
            batch.append(place)
        if batch:
            yield batch

    @torch.inference_mode()
    def _log_probs(self, batch: list[tuple[History, npt.NDArray[np.int64]]]) -> Tensor:
        """(users, n_items) log-probabilities over the videos each user has not seen, -inf for the seen."""
        encoded = self._encoder.encode_batch([history for history, _ in batch])
        hidden = self._model(pad_rows(encoded.rows, encoded.lengths))
        last = torch.from_numpy(encoded.lengths) - 1
        logits = self._model.logits(hidden[torch.arange(len(batch)), last])
        for row, (_, seen) in zip(logits, batch, strict=True):
            row[torch.from_numpy(seen)] = -torch.inf
        return torch.log_softmax(logits, dim=-1)


def pad_rows(rows: npt.NDArray[np.float32], lengths: npt.NDArray[np.int64]) -> Tensor:
    """Joined rows (total, lanes) of sequences of these lengths, padded on the right: (B, longest, lanes)."""
    padded = np.zeros((len(lengths), int(lengths.max()), rows.shape[1]), np.float32)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = rows
    return torch.from_numpy(padded)
