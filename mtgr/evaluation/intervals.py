"""How far a mean over users may be trusted: percentile bootstrap intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
from msgspec import Struct

RESAMPLES: Final = 1000
LEVEL: Final = 0.95


class Interval(Struct, frozen=True, array_like=True):
    """A mean and the bounds within which it lies with the level asked for."""

    value: float
    low: float
    high: float

    def overlaps(self, other: Interval) -> bool:
        """Whether the two have a number in common."""
        return self.low <= other.high and other.low <= self.high


def bootstrap(
    values: Mapping[str, npt.NDArray[np.float64]],
    *,
    weights: npt.NDArray[np.float64] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> dict[str, Interval]:
    """The mean over users of each of several values, with its interval; no users give no interval.

    values: name -> (users,); weights: (users,), for weighted means. Users are drawn with replacement, the same
    ones for all values, and the bounds are percentiles of the means (Efron, Annals of Statistics 1979). The
    same seed gives the same bounds.
    """
    if not values:
        return {}
    table = np.stack([np.asarray(column, np.float64) for column in values.values()], axis=1)
    users = len(table)
    if not users:
        return {}
    weight = np.ones(users) if weights is None else np.asarray(weights, np.float64)
    # a last column of the weights alone, so that one product gives numerators and denominator
    terms = np.column_stack([table * weight[:, None], weight])
    means = terms[:, :-1].sum(0) / terms[:, -1].sum()
    chance = np.random.default_rng(seed)
    drawn = np.empty((resamples, terms.shape[1]))
    for place in range(resamples):
        times = np.bincount(chance.integers(0, users, users), minlength=users)
        drawn[place] = times @ terms
    tail = (1 - level) / 2
    low, high = np.quantile(drawn[:, :-1] / drawn[:, -1:], (tail, 1 - tail), axis=0)
    return {
        name: Interval(value, lower, upper)
        for name, value, lower, upper in zip(values, means.tolist(), low.tolist(), high.tolist(), strict=True)
    }


def paired_difference(
    values: Mapping[str, npt.NDArray[np.float64]],
    others: Mapping[str, npt.NDArray[np.float64]],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> dict[str, Interval]:
    """How much better one system is than another on the same users in the same order, for the values both have.

    The users of a resample are drawn for both at once, so that what is hard for both widens no interval.
    Raises ValueError if the users are not as many.
    """
    differences = {}
    for name in values:
        if name in others:
            if len(values[name]) != len(others[name]):
                raise ValueError(f"{name}: {len(values[name])} users against {len(others[name])}")
            differences[name] = values[name] - others[name]
    return bootstrap(differences, seed=seed, resamples=resamples, level=level)
