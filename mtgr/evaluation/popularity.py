"""How well known each video is, and the recommender that knows nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from mtgr.evaluation.protocol import Case
from mtgr.history import History


def users_of_videos(histories: Mapping[str, History]) -> Counter[str]:
    """The number of users with at least one event on each video."""
    counts: Counter[str] = Counter()
    for history in histories.values():
        counts.update(set(history.video_ids))
    return counts


class ItemSpace:
    """Numbers for all videos that lists may hold: the catalog's first, as the catalog has them, then others."""

    def __init__(self, catalog: Sequence[str], others: Iterable[str] = ()) -> None:
        self.catalog_size: Final = len(catalog)
        self.index_of: Final = {video: index for index, video in enumerate(catalog)}
        for video in others:
            self.index_of.setdefault(video, len(self.index_of))

    def __len__(self) -> int:
        return len(self.index_of)

    def counts(self, of_videos: Mapping[str, int]) -> npt.NDArray[np.int64]:
        """A number for each video as an array: (videos,) int64, 0 where there is none."""
        counts = np.zeros(len(self), np.int64)
        for video, count in of_videos.items():
            counts[self.index_of[video]] = count
        return counts


class PopularityScorer:
    """Scores every video of a catalog by the number of users who know it, the same for everybody."""

    def __init__(self, popularity: npt.NDArray[np.int64]) -> None:
        """popularity: (n_items,)."""
        self._scores: Final = popularity.astype(np.float32)

    def scores(self, cases: Sequence[Case]) -> npt.NDArray[np.float32]:
        """(cases, n_items), the caller's to change."""
        return np.tile(self._scores, (len(cases), 1))
