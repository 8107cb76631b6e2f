"""The plain PyTorch generator: a full float32 forward for every list, exact and without a cache."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mtgr.additions import encode_additions
from mtgr.admission import admit, check_count
from mtgr.checkpoint import Checkpoint, open_checkpoint
from mtgr.errors import RequestRefused
from mtgr.features import RowEncoder, candidate_rows
from mtgr.history import History
from mtgr.model.jagged import Layout, length_batches
from mtgr.requests import AddedVideos, ListOutcome, ListRefusal, ListRequest, ListResult, NewVideo


@dataclass(frozen=True, slots=True)
class _Admitted:
    place: int
    request: ListRequest
    history: History
    profile: dict[str, Any]
    seen: npt.NDArray[np.int64]  # indices of the catalog that lists leave out


class ReferenceRecommender:
    """Recommends the unseen videos most likely to be watched next, by the definition of the model."""

    def __init__(self, checkpoint: Checkpoint | str | os.PathLike[str]) -> None:
        """Load the model; InputError if the checkpoint is wrong."""
        opened = checkpoint if isinstance(checkpoint, Checkpoint) else open_checkpoint(checkpoint)
        self.checkpoint: Final = opened
        self._config: Final = opened.config
        self._catalog: Final = opened.catalog
        self._encoder: Final = RowEncoder(opened.config, opened.catalog)
        self._model: Final = opened.load_model()

    def add_videos(self, videos: Sequence[NewVideo]) -> AddedVideos:
        """Let new videos be recommended, as long as there are spare places."""
        additions, outcome = encode_additions(videos, self._catalog, self._config)
        for addition in additions:
            self._model.embeddings.video.add(
                addition.index, addition.bucket, addition.categories, addition.numbers
            )
            if self._model.head.bias is not None:
                with torch.no_grad():
                    self._model.head.bias[addition.index] = self._model.head.bias[addition.bucket]
        return outcome

    def recommend(self, requests: Sequence[ListRequest]) -> list[ListOutcome]:
        """One outcome for each request, in their order; a request the model cannot serve gets a refusal."""
        outcomes: list[ListOutcome | None] = [None] * len(requests)
        admitted: list[_Admitted] = []
        for place, request in enumerate(requests):
            try:
                admitted.append(self._admit(place, request))
            except RequestRefused as refusal:
                outcomes[place] = ListRefusal(type(refusal).__name__, str(refusal))
        lengths = [
            len(one.history) + 1 + (one.request.count if one.request.strategy == "slate" else 0)
            for one in admitted
        ]
        for numbers in length_batches(lengths, self._config):
            batch = [admitted[number] for number in numbers]
            for one, (items, scores) in zip(batch, self._lists(batch), strict=True):
                outcomes[one.place] = ListResult(
                    video_ids=[self._catalog.video_id(index) for index in items],
                    scores=scores,
                    sequence_length=len(one.history),
                    cached_tokens=0,
                )
        return [outcome for outcome in outcomes if outcome is not None]

    @torch.inference_mode()
    def scores(
        self, histories: Sequence[History], profiles: Sequence[Mapping[str, Any]] | None = None
    ) -> npt.NDArray[np.float32]:
        """(histories, videos of the catalog) logits of the video watched next, seen ones among them.

        No history is longer than the config's capacity; all of them are computed in one forward.
        """
        encoded = self._encoder.encode_batch(histories, profiles)
        logits: npt.NDArray[np.float32] = self._logits(encoded.rows, encoded.lengths).numpy()
        return logits

    def _admit(self, place: int, request: ListRequest) -> _Admitted:
        history, profile = admit(request, self._config)
        seen = np.unique(self._catalog.indices(history.video_ids))
        seen = seen[seen < len(self._catalog)]
        check_count(request.count, len(seen), len(self._catalog))
        return _Admitted(place, request, history, profile, seen)

    @torch.inference_mode()
    def _lists(self, batch: list[_Admitted]) -> list[tuple[list[int], list[float]]]:
        """Item indices and log-probabilities of each list."""
        encoded = self._encoder.encode_batch([one.history for one in batch], [one.profile for one in batch])
        ends = np.cumsum(encoded.lengths)
        sequences = [
            encoded.rows[end - length : end] for end, length in zip(ends, encoded.lengths, strict=True)
        ]
        lists: list[tuple[list[int], list[float]]] = [([], []) for _ in batch]
        unfinished = list(range(len(batch)))
        while unfinished:
            rows = np.concatenate([sequences[number] for number in unfinished])
            logits = self._logits(rows, np.array([len(sequences[number]) for number in unfinished]))
            for number, row in zip(unfinished, logits, strict=True):
                one, (items, scores) = batch[number], lists[number]
                row[torch.from_numpy(one.seen)] = -torch.inf
                row[items] = -torch.inf
                step = 1 if one.request.strategy == "slate" else one.request.count
                top = torch.log_softmax(row, dim=-1).topk(step)
                items.extend(top.indices.tolist())
                scores.extend(top.values.tolist())
                if len(items) < one.request.count:
                    chosen = candidate_rows(top.indices.numpy(), self._config)
                    sequences[number] = np.concatenate([sequences[number], chosen])
            unfinished = [n for n in unfinished if len(lists[n][0]) < batch[n].request.count]
        return lists

    def _logits(self, rows: npt.NDArray[np.float32], lengths: npt.NDArray[np.int64]) -> Tensor:
        layout = Layout.of(lengths)
        hidden = self._model(torch.from_numpy(rows), layout)
        return self._model.logits(hidden[layout.last], len(self._catalog))
