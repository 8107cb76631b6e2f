"""What the ranking heads say of videos: candidates beside a history, all in one masked forward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from mtgr.checkpoint import Checkpoint
from mtgr.evaluation.impressions import Impressions
from mtgr.evaluation.profiles import ProfileTimeline
from mtgr.evaluation.rankings import OnProgress
from mtgr.evaluation.served import held_history
from mtgr.features import RowEncoder, candidate_rows
from mtgr.history import History
from mtgr.model.jagged import Layout, length_batches
from mtgr.model.masks import Roles
from mtgr.model.mtgr import MTGR

_CANDIDATES: Final = 128  # of a sequence; more of one user come with the history once more


class CandidateScorer:
    """Scores candidates by the ranking heads of a checkpoint."""

    def __init__(self, checkpoint: Checkpoint, profiles: ProfileTimeline | None = None) -> None:
        """Load the model; InputError if the checkpoint is wrong. ValueError if it has no ranking heads."""
        if not checkpoint.config.ranking:
            raise ValueError("the checkpoint has no ranking heads")
        self._config: Final = checkpoint.config
        self._catalog: Final = checkpoint.catalog
        self._encoder: Final = RowEncoder(checkpoint.config, checkpoint.catalog)
        self._model: Final[MTGR] = checkpoint.load_model()
        self._profiles: Final = ProfileTimeline() if profiles is None else profiles

    def scores(
        self, impressions: Sequence[Impressions], on_progress: OnProgress | None = None
    ) -> list[npt.NDArray[np.float32]]:
        """For each user (n, heads) logits, of the videos as if each came next after the history."""
        scores = [np.empty(one.labels.shape, np.float32) for one in impressions]
        held = [held_history(one.history, self._config) for one in impressions]
        parts = [
            (user, begin, min(begin + _CANDIDATES, len(one.video_ids)))
            for user, one in enumerate(impressions)
            for begin in range(0, len(one.video_ids), _CANDIDATES)
        ]
        done = 0
        lengths = [1 + len(held[user]) + end - begin for user, begin, end in parts]
        for numbers in length_batches(lengths, self._config):
            batch = [parts[number] for number in numbers]
            profiles = [
                self._profiles.at(impressions[user].user_id, impressions[user].asked_ms)
                for user, _, _ in batch
            ]
            videos = [impressions[user].video_ids[begin:end] for user, begin, end in batch]
            logits = self._logits([held[user] for user, _, _ in batch], profiles, videos)
            for (user, begin, end), one in zip(batch, logits, strict=True):
                scores[user][begin:end] = one
            done += sum(begin == 0 for _, begin, _ in batch)
            if on_progress is not None:
                on_progress(done)
        return scores

    @torch.inference_mode()
    def _logits(
        self,
        histories: Sequence[History],
        profiles: Sequence[Mapping[str, Any]],
        videos: Sequence[Sequence[str]],
    ) -> list[npt.NDArray[np.float32]]:
        encoded = self._encoder.encode_batch(histories, profiles)
        ends = np.cumsum(encoded.lengths)
        rows, order, candidate = [], [], []
        for end, length, names in zip(ends.tolist(), encoded.lengths.tolist(), videos, strict=True):
            rows += [
                encoded.rows[end - length : end],
                candidate_rows(self._catalog.indices(names), self._config),
            ]
            order += [np.arange(length), np.full(len(names), length)]
            candidate += [np.zeros(length, np.bool_), np.ones(len(names), np.bool_)]
        counts = np.array([len(names) for names in videos])
        layout = Layout.of(encoded.lengths + counts)
        places = torch.from_numpy(np.concatenate(order))
        is_candidate = torch.from_numpy(np.concatenate(candidate))
        static = places == 0
        if self._config.mask == "mixed":
            lasts = torch.from_numpy(np.repeat(encoded.lengths - 1, encoded.lengths + counts))
            static = (static | (lasts - places >= self._config.recent_events)) & ~is_candidate
        hidden = self._model(
            torch.from_numpy(np.concatenate(rows)), layout, Roles(static, is_candidate, places)
        )
        assert self._model.ranking is not None
        logits = self._model.ranking(hidden[is_candidate]).numpy()
        return np.split(logits, np.cumsum(counts)[:-1])
