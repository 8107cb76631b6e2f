"""Promises of mtgr.evaluation.metrics: the field's figures, by hand and by definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtgr.evaluation import metrics
from mtgr.evaluation.metrics import NO_ITEM, case_metrics

RANKS = np.array([1, 2, 4, 10, 11, np.inf])


def test_figures_by_hand() -> None:
    """HR, NDCG and MRR of six ranks, one of them a miss, are what a pencil gives."""
    means = {name: values.mean() for name, values in case_metrics(RANKS, (5, 10), complete=True).items()}
    assert means == pytest.approx(
        {
            "HR@5": 3 / 6,
            "NDCG@5": (1 + 1 / math.log2(3) + 1 / math.log2(5)) / 6,
            "HR@10": 4 / 6,
            "NDCG@10": (1 + 1 / math.log2(3) + 1 / math.log2(5) + 1 / math.log2(11)) / 6,
            "MRR@10": (1 + 1 / 2 + 1 / 4 + 1 / 10) / 6,
            "MRR": (1 + 1 / 2 + 1 / 4 + 1 / 10 + 1 / 11) / 6,
        }
    )
    assert list(means) == ["HR@5", "NDCG@5", "HR@10", "NDCG@10", "MRR@10", "MRR"]


def test_without_the_full_ranking_there_is_no_full_mrr() -> None:
    """What lists do not tell is not guessed."""
    assert "MRR" not in case_metrics(RANKS, (10,), complete=False)


@given(st.lists(st.integers(1, 200) | st.just(math.inf), min_size=1), st.integers(1, 50))
def test_figures_lie_in_order(ranks: list[float], k: int) -> None:
    """Of each case MRR <= NDCG <= HR, all within 0 and 1, and a longer list is never worse."""
    held = np.array(ranks, np.float64)
    hits, gains, reciprocals = metrics.hits(held, k), metrics.gains(held, k), metrics.reciprocals(held, k)
    assert ((reciprocals >= 0) & (reciprocals <= gains) & (gains <= hits) & (hits <= 1)).all()
    for metric in (metrics.hits, metrics.gains, metrics.reciprocals):
        assert (metric(held, k) <= metric(held, k + 1)).all()


LISTS = np.array([[0, 1, 2], [0, 1, NO_ITEM], [0, 3, 9]])
POPULARITY = np.array([8, 4, 0, 1, 2, *[0] * 5])


def test_coverage_counts_videos_of_the_catalog_once() -> None:
    """Four of ten videos are recommended, and three of a catalog of the first three; padding is none."""
    assert metrics.coverage(LISTS, 10) == 0.5
    assert metrics.coverage(LISTS, 3) == 1.0
    assert metrics.coverage(LISTS[:, :1], 10) == 0.1


def test_popularity_of_lists_by_hand() -> None:
    """Means are over recommended videos, and padding counts for nothing."""
    assert metrics.mean_popularity(LISTS, POPULARITY) == pytest.approx((3 * 8 + 2 * 4 + 0 + 1 + 0) / 8)
    logs = 3 * math.log(9) + 2 * math.log(5) + math.log(2)
    assert metrics.mean_log_popularity(LISTS, POPULARITY) == pytest.approx(logs / 8)
    bits = 3 * 0 + 2 * 1 + 3 + 3 + 3
    assert metrics.novelty(LISTS, POPULARITY, users=8) == pytest.approx(bits / 8)


def test_no_lists_have_figures_too() -> None:
    """Where nothing is recommended, nothing is divided by zero."""
    nothing = np.full((2, 3), NO_ITEM)
    assert metrics.coverage(nothing, 10) == metrics.gini(metrics.exposure(nothing, 10)) == 0.0
    assert metrics.mean_popularity(nothing, POPULARITY) == metrics.novelty(nothing, POPULARITY, 8) == 0.0


def test_the_gini_index_by_hand() -> None:
    """Equal shares are 0, one that has all is 1 - 1/n, and 1 2 3 4 are a quarter."""
    assert metrics.gini(np.array([3, 3, 3])) == pytest.approx(0)
    assert metrics.gini(np.array([0, 0, 0, 7])) == pytest.approx(0.75)
    assert metrics.gini(np.array([4, 1, 3, 2])) == pytest.approx(0.25)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=30).filter(any))
def test_the_gini_index_is_the_mean_difference(shown: list[int]) -> None:
    """Half the relative mean absolute difference, which defines it."""
    held = np.array(shown)
    expected = np.abs(held[:, None] - held).sum() / (2 * len(held) ** 2 * held.mean())
    assert metrics.gini(held) == pytest.approx(expected, abs=1e-12)
