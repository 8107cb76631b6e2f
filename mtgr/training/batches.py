"""Batches of windows by a budget of tokens, the like-long together so that little is padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mtgr.catalog import Catalog
from mtgr.config import ModelConfig
from mtgr.features import write_video
from mtgr.training.options import TrainingOptions
from mtgr.training.windows import NO_TARGET, Windows

_POOL_BATCHES: Final = (
    32  # windows are sorted by length inside pools this large: random enough, little padding
)


@dataclass(frozen=True, slots=True)
class Batch:
    """Windows padded on the right.

    rows: (B, L, lanes) float32; token_ids: (B, L) int64, padded with the profile's id; targets: (B, L) int64,
    NO_TARGET where nothing is predicted.
    """

    rows: Tensor
    token_ids: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        return Batch(self.rows.to(device), self.token_ids.to(device), self.targets.to(device))


class Batcher:
    """Draws the windows of an epoch in random batches of at most `batch_tokens` tokens, padding included."""

    def __init__(
        self,
        windows: Windows,
        catalog: Catalog,
        config: ModelConfig,
        options: TrainingOptions,
        random: np.random.Generator,
    ) -> None:
        """The random generator decides order, batches and which videos are shown as unknown ones."""
        self._windows = windows
        self._config = config
        self._batch_tokens = options.tokens_a_batch(config.max_length)
        self._unknown_share = options.unknown_share
        self._buckets = np.array([catalog.bucket(video) for video in catalog.video_ids], np.int64)
        self._random = random

    def plan(self) -> list[npt.NDArray[np.int64]]:
        """The window numbers of each batch of one epoch, in random order."""
        lengths = self._windows.lengths
        order = self._random.permutation(len(lengths))
        pools = np.cumsum(lengths[order]) // (self._batch_tokens * _POOL_BATCHES)
        order = order[np.lexsort((lengths[order], pools))]
        batches = []
        begin = 0
        for place in range(1, len(order) + 1):
            longest = max(lengths[order[begin]], lengths[order[place]]) if place < len(order) else 0
            if place == len(order) or (place + 1 - begin) * longest > self._batch_tokens:
                batches.append(order[begin:place])
                begin = place
        self._random.shuffle(batches)
        return batches

    def batch(self, chosen: npt.NDArray[np.int64]) -> Batch:
        """These windows, padded; some of their events show the video's bucket, to give the bucket a meaning."""
        windows = self._windows
        lengths = windows.lengths[chosen]
        longest = int(lengths.max())
        real = np.arange(longest) < lengths[:, None]  # (B, L)
        places = (windows.starts[chosen][:, None] + np.arange(longest))[real]
        rows = np.zeros((*real.shape, windows.rows.shape[1]), np.float32)
        token_ids = np.full(real.shape, self._config.profile_id, np.int64)
        targets = np.full(real.shape, NO_TARGET, np.int64)
        rows[real] = windows.rows[places]
        token_ids[real] = windows.token_ids[places]
        targets[real] = windows.targets[places]
        hidden = (token_ids < self._config.n_items) & (self._random.random(real.shape) < self._unknown_share)
        shown = rows[hidden]
        write_video(shown, self._buckets[token_ids[hidden]])
        rows[hidden] = shown
        return Batch(torch.from_numpy(rows), torch.from_numpy(token_ids), torch.from_numpy(targets))
