"""The plain PyTorch generator: a full float32 forward for every list, exact and without a cache."""

from __future__ import annotations

import os
from collections.abc import Sequence
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
from mtgr.model.padding import length_batches, pad_rows
from mtgr.requests import ListOutcome, ListRefusal, ListRequest, ListResult


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
        places: list[int] = []
        admitted: list[tuple[History, npt.NDArray[np.int64]]] = []
        for place, request in enumerate(requests):
            try:
                history = admit(request, self._config)
                seen = np.unique(self.checkpoint.catalog.indices(history.video_ids))
                seen = seen[seen < self._config.n_items]
                check_count(request.count, len(seen), self._config)
            except RequestRefused as refusal:
                outcomes[place] = ListRefusal(type(refusal).__name__, str(refusal))
            else:
                places.append(place)
                admitted.append((history, seen))
        for batch in length_batches([len(history) + 1 for history, _ in admitted], self._config):
            log_probs = self._log_probs([admitted[number] for number in batch])
            for number, row in zip(batch, log_probs, strict=True):
                top = row.topk(requests[places[number]].count)
                outcomes[places[number]] = ListResult(
                    video_ids=[self.checkpoint.catalog.video_id(index) for index in top.indices.tolist()],
                    scores=top.values.tolist(),
                    sequence_length=len(admitted[number][0]),
                    cached_tokens=0,
                )
        return [outcome for outcome in outcomes if outcome is not None]

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
