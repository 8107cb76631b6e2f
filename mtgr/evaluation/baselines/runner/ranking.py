"""From scores to lists, and how good lists are: the same for every model."""

from __future__ import annotations

from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import torch

from .task import Cases

SELECT_AT: Final = 10
"""Candidates are compared by NDCG@10."""

_CHUNK: Final = 1024


class Scorer(Protocol):
    """A fitted model."""

    def scores(self, cases: Cases, start: int, stop: int) -> torch.Tensor:
        """Scores of all items for the cases from `start` up to `stop`: (stop - start, items); -inf where the
        model has nothing to say."""


def top_k(
    scorer: Scorer, cases: Cases, k: int, *, exclude_seen: bool, fallback: torch.Tensor
) -> npt.NDArray[np.int32]:
    """The k best items of each case, best first: (cases, k) item numbers, -1 where there are fewer.

    `fallback` (items,) holds the scores for users without a history.
    """
    lists = np.full((len(cases), k), -1, dtype=np.int32)
    for start in range(0, len(cases), _CHUNK):
        stop = min(start + _CHUNK, len(cases))
        scores = scorer.scores(cases, start, stop)
        histories = cases.histories[start:stop]
        lengths = np.array([len(history) for history in histories])
        scores[torch.from_numpy(lengths == 0).to(scores.device)] = fallback.to(scores)
        if exclude_seen and lengths.any():
            rows = torch.from_numpy(np.repeat(np.arange(len(histories)), lengths)).to(scores.device)
            scores[rows, torch.from_numpy(np.concatenate(histories)).to(scores.device)] = -torch.inf
        best, items = scores.topk(min(k, scores.shape[1]))
        items[best == -torch.inf] = -1
        lists[start:stop, : items.shape[1]] = items.cpu().numpy()
    return lists


def quality(lists: npt.NDArray[np.int32], targets: npt.NDArray[np.int64]) -> dict[str, float]:
    """Recall and NDCG at SELECT_AT of lists with one target each: NDCG = 1 / log2(1 + rank)."""
    hits = (lists[:, :SELECT_AT] == targets[:, None]) & (targets[:, None] >= 0)
    ranks = hits.argmax(axis=1) + 1
    found = hits.any(axis=1)
    return {
        f"ndcg@{SELECT_AT}": float(np.where(found, 1 / np.log2(1 + ranks), 0).mean()),
        f"recall@{SELECT_AT}": float(found.mean()),
    }
