"""What ranks and lists are worth: accuracy for each case, and what a set of lists is like as a whole.

A rank is the place of a case's target in the ranking of the whole catalog, 1 for the best, and infinite where the
target is not ranked at all; ranks are float64 for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

NO_ITEM: Final = -1
"""Fills lists that are shorter than the others."""

Ranks = npt.NDArray[np.float64]
Lists = npt.NDArray[np.int64]
Counts = npt.NDArray[np.int64]


def hits(ranks: Ranks, k: int) -> npt.NDArray[np.float64]:
    """HR@k of each case: 1 where the target is among the best k. With one target a case it is Recall@k."""
    return (ranks <= k).astype(np.float64)


def gains(ranks: Ranks, k: int) -> npt.NDArray[np.float64]:
    """NDCG@k of each case: 1 / log2(1 + rank) among the best k, else 0; with one target the ideal gain is 1
    (Järvelin and Kekäläinen, TOIS 2002).
    """
    return np.where(ranks <= k, 1 / np.log2(1 + ranks), 0.0)


def reciprocals(ranks: Ranks, k: float = np.inf) -> npt.NDArray[np.float64]:
    """MRR@k of each case: 1 / rank among the best k, else 0; without k, of the full ranking."""
    return np.where(ranks <= k, 1 / ranks, 0.0)


def case_metrics(ranks: Ranks, ks: Sequence[int], *, complete: bool) -> dict[str, npt.NDArray[np.float64]]:
    """Metric name -> its value for each case; HR and NDCG at each k, MRR at the largest.

    `complete` says that the ranks reach beyond the lists, so that there is an MRR of the full ranking.
    """
    values = {}
    for k in sorted(ks):
        values[f"HR@{k}"] = hits(ranks, k)
        values[f"NDCG@{k}"] = gains(ranks, k)
    values[f"MRR@{max(ks)}"] = reciprocals(ranks, max(ks))
    if complete:
        values["MRR"] = reciprocals(ranks)
    return values


def exposure(lists: Lists, n_items: int) -> Counts:
    """In how many of the lists each item stands: (n_items,); numbers from n_items on are not counted."""
    return np.bincount(lists[(lists != NO_ITEM) & (lists < n_items)], minlength=n_items)


def coverage(lists: Lists, n_items: int) -> float:
    """The share of the catalog that stands in at least one list."""
    return float(np.count_nonzero(exposure(lists, n_items)) / n_items)


def gini(shown: npt.NDArray[Any]) -> float:
    """The Gini index of numbers >= 0: 0 where all are equal, near 1 where one has all; 0 where all are 0."""
    total = shown.sum()
    if total == 0:
        return 0.0
    n = len(shown)
    places = np.arange(1, n + 1)
    return float(((2 * places - n - 1) * np.sort(shown)).sum() / (n * total))


def mean_popularity(items: npt.NDArray[np.int64], popularity: Counts) -> float:
    """The mean popularity of items, NO_ITEM left out; over lists it is the ARP (Yin et al., VLDB 2012).

    popularity: (n_items,), the users that each item has met; 0.0 where there is no item.
    """
    shown = items[items != NO_ITEM]
    return float(popularity[shown].mean()) if len(shown) else 0.0


def mean_log_popularity(items: npt.NDArray[np.int64], popularity: Counts) -> float:
    """The mean of log(1 + popularity) of items, NO_ITEM left out; 0.0 where there is no item."""
    shown = items[items != NO_ITEM]
    return float(np.log1p(popularity[shown]).mean()) if len(shown) else 0.0


def novelty(lists: Lists, popularity: Counts, users: int) -> float:
    """The mean self-information of the recommended items in bits, -log2 of the share of users that know them
    (Zhou et al., PNAS 2010); an item that nobody knows counts as one that a single user knows.
    """
    shown = lists[lists != NO_ITEM]
    return float(-np.log2(np.maximum(popularity[shown], 1) / max(users, 1)).mean()) if len(shown) else 0.0
