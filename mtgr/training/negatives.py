"""Which videos a target is to be told apart from, and how often each was to be expected among them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from mtgr.training.options import TrainingOptions

NOBODY: Final = -1
"""Owner of a negative that was drawn for the whole batch."""


@dataclass(frozen=True, slots=True)
class Negatives:
    """Videos drawn for a batch of B windows.

    items: (C,) int64; owners: (C,) int64, the window whose target each is, which does not count it, or NOBODY;
    corrections: (1 or B, C) float32, -log of how often the video was to be drawn, to be added to its logit.
    """

    items: npt.NDArray[np.int64]
    owners: npt.NDArray[np.int64]
    corrections: npt.NDArray[np.float32]


class NegativeSampler:
    """Draws by how often a video is a target, and uniformly.

    The sum over the catalog is estimated from the draws, each weighted by one over its expected number (logQ
    correction; Bengio & Senecal, IEEE TNN 2008): with it the expectation is the sum, whatever the shares.
    """

    def __init__(self, target_counts: npt.NDArray[np.int64], options: TrainingOptions) -> None:
        """target_counts: (n_items,) how often each video is to be predicted."""
        self.n_items: Final = len(target_counts)
        self.draws: Final = options.draws(self.n_items)
        self._in_batch: Final = options.in_batch
        draws = self.draws or 0
        self._uniform: Final = round(draws * options.uniform_share)
        self._frequent: Final = draws - self._uniform
        self._chances: Final = target_counts / target_counts.sum()
        self._cumulated: Final = np.cumsum(self._chances)

    def draw(
        self,
        targets: npt.NDArray[np.int64],
        owners: npt.NDArray[np.int64],
        windows: int,
        random: np.random.Generator,
    ) -> Negatives | None:
        """Negatives for a batch; targets, owners: (M,) its targets and their windows. None: all are negatives."""
        if self.draws is None:
            return None
        uniform = random.integers(0, self.n_items, self._uniform)
        if self._in_batch:
            taken = random.permutation(len(targets))[: self._frequent]
            frequent, their_owners = targets[taken], owners[taken]
            # of a window's view: only what the other windows hold was a matter of chance
            others = len(taken) - np.bincount(their_owners, minlength=windows)[:, None]  # (B, 1)
        else:
            places = np.searchsorted(self._cumulated, random.random(self._frequent), side="right")
            frequent = np.minimum(places, self.n_items - 1)
            their_owners = np.full(self._frequent, NOBODY)
            others = np.array([[self._frequent]])
        items = np.concatenate([frequent, uniform])
        expected = others * self._chances[items] + self._uniform / self.n_items
        # of no use to a window that alone has such a video and draws none uniformly: it does not count it
        corrections = -np.log(np.where(expected > 0, expected, 1.0))
        return Negatives(
            items,
            np.concatenate([their_owners, np.full(self._uniform, NOBODY)]),
            corrections.astype(np.float32),
        )
