"""Promises of mtgr.evaluation.intervals: bounds that hold the truth as often as they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtgr.evaluation.intervals import Interval, bootstrap, paired_difference


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50), st.integers(0, 5))
@settings(max_examples=25)
def test_an_interval_holds_the_mean_and_lies_within_the_values(values: list[float], seed: int) -> None:
    """low <= mean <= high for more than a few users, and never beyond the least and the greatest value."""
    held = np.array(values)
    found = bootstrap({"x": held}, seed=seed, resamples=200)["x"]
    assert found.value == pytest.approx(held.mean())
    assert held.min() - 1e-9 <= found.low <= found.high <= held.max() + 1e-9
    assert found == bootstrap({"x": held}, seed=seed, resamples=200)["x"], "the seed decides"


def test_the_width_is_the_normal_one_for_many_users() -> None:
    """For a share of 2000 users the interval is 1.96 standard errors to each side."""
    hits = (np.arange(2000) < 300).astype(np.float64)
    found = bootstrap({"x": hits}, resamples=4000)["x"]
    error = 1.96 * math.sqrt(0.15 * 0.85 / 2000)
    assert found.value == 0.15
    assert found.low == pytest.approx(0.15 - error, abs=0.002)
    assert found.high == pytest.approx(0.15 + error, abs=0.002)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Of 200 samples of a known distribution about 95 % have the true mean in their interval."""
    chance = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        found = bootstrap({"x": chance.exponential(1.0, 200)}, resamples=300)["x"]
        held += found.low <= 1.0 <= found.high
    assert 180 <= held <= 199


def test_weights_make_a_weighted_mean() -> None:
    """A user with weight 3 counts as three, in the mean and in the bounds."""
    found = bootstrap({"x": np.array([1.0, 0.0])}, weights=np.array([3.0, 1.0]))["x"]
    assert found == Interval(0.75, 0.0, 1.0)


def test_a_paired_difference_is_narrower_than_the_two_intervals() -> None:
    """Where one system is a little better for every user, that is certain though the users differ much."""
    chance = np.random.default_rng(0)
    theirs = chance.random(300)
    ours = theirs + chance.random(300) * 0.02
    separate = bootstrap({"ours": ours, "theirs": theirs})
    assert separate["ours"].overlaps(separate["theirs"])
    difference = paired_difference({"x": ours, "y": ours}, {"x": theirs})
    assert list(difference) == ["x"]
    assert 0 < difference["x"].low < difference["x"].value < difference["x"].high < 0.02


def test_different_users_are_not_paired() -> None:
    """Systems that were judged on other users are not subtracted."""
    with pytest.raises(ValueError, match="3 users against 2"):
        paired_difference({"x": np.ones(3)}, {"x": np.ones(2)})


def test_nobody_has_no_interval() -> None:
    """An empty slice has no figures rather than wrong ones."""
    assert bootstrap({"x": np.empty(0)}) == bootstrap({}) == {}
