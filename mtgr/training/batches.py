"""Batches of windows by a budget of tokens, joined so that nothing is padded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mtgr.catalog import Catalog
from mtgr.config import ModelConfig
from mtgr.features import write_video
from mtgr.model.jagged import Layout
from mtgr.training.options import TrainingOptions
from mtgr.training.windows import NO_TARGET, Windows


@dataclass(frozen=True, slots=True)
class Batch:
    """Joined windows.

    rows: (T, lanes) float32; token_ids: (T,) int64; layout: how they are taken apart; places: (M,) int64, the
    tokens from which something is predicted; owners: (M,) int64, their windows; targets: (M,) int64.
    """

    rows: Tensor
    token_ids: Tensor
    layout: Layout
    places: Tensor
    owners: Tensor
    targets: Tensor


class Batcher:
    """Draws the windows of an epoch in random batches of at most `batch_tokens` tokens."""

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
        batches = []
        begin, tokens = 0, 0
        for place, length in enumerate(lengths[order].tolist()):
            if place > begin and tokens + length > self._batch_tokens:
                batches.append(order[begin:place])
                begin, tokens = place, 0
            tokens += length
        return [*batches, order[begin:]]

    def batch(self, chosen: npt.NDArray[np.int64], device: torch.device) -> Batch:
        """These windows, joined; some of their events show the video's bucket, to give the bucket a meaning."""
        windows = self._windows
        lengths = windows.lengths[chosen]
        ends = np.cumsum(lengths)
        taken = np.arange(ends[-1]) + np.repeat(windows.starts[chosen] - ends + lengths, lengths)
        rows = windows.rows[taken]
        token_ids = windows.token_ids[taken]
        hidden = (token_ids < self._config.n_items) & (self._random.random(len(taken)) < self._unknown_share)
        shown = rows[hidden]
        write_video(shown, self._buckets[token_ids[hidden]])
        rows[hidden] = shown
        targets = windows.targets[taken]
        places = np.flatnonzero(targets != NO_TARGET)
        return Batch(
            rows=torch.from_numpy(rows).to(device),
            token_ids=torch.from_numpy(token_ids).to(device),
            layout=Layout.of(lengths, device),
            places=torch.from_numpy(places).to(device),
            owners=torch.from_numpy(np.searchsorted(ends, places, side="right")).to(device),
            targets=torch.from_numpy(targets[places]).to(device),
        )
