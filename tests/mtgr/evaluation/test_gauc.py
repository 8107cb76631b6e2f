"""Promises of mtgr.evaluation.gauc: AUC within users, against a count of all pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtgr.evaluation.gauc import user_auc

_impressions = st.lists(
    st.tuples(st.integers(0, 3), st.integers(-3, 3).map(float), st.booleans()), min_size=1, max_size=60
)


@given(_impressions)
def test_auc_is_the_share_of_pairs_in_order(impressions: list[tuple[int, float, bool]]) -> None:
    """For each user it equals the count over all pairs of a positive and a negative, ties a half."""
    users, scores, labels = (np.array(column) for column in zip(*impressions, strict=True))
    expected: dict[int, tuple[float, int]] = {}
    for user in sorted(set(users.tolist())):
        own = users == user
        positives, negatives = scores[own & labels], scores[own & ~labels]
        if len(positives) and len(negatives):
            pairs = [
                1.0 if good > bad else 0.5 if good == bad else 0.0 for good in positives for bad in negatives
            ]
            expected[user] = (sum(pairs) / len(pairs), int(own.sum()))
    found = user_auc(users, scores, labels)
    assert found.users.tolist() == list(expected)
    assert found.auc.tolist() == pytest.approx([auc for auc, _ in expected.values()])
    assert found.impressions.tolist() == [count for _, count in expected.values()]
    if expected:
        total = sum(count for _, count in expected.values())
        assert found.gauc == pytest.approx(sum(auc * count for auc, count in expected.values()) / total)
    else:
        assert math.isnan(found.gauc)


def test_a_score_that_is_no_number_is_refused() -> None:
    """NaN has no place in an order, so it cannot be judged."""
    with pytest.raises(ValueError, match="impression 1 is not a number"):
        user_auc(np.array([0, 0]), np.array([0.0, np.nan]), np.array([True, False]))
