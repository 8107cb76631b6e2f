"""AUC within each user: whether what a user took to was scored above what the user did not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class UserAUC:
    """AUC of each user who has both labels.

    users: (n,), numbers as they were given; auc: (n,) float64; impressions: (n,), the weight of each user.
    """

    users: npt.NDArray[np.int64]
    auc: npt.NDArray[np.float64]
    impressions: npt.NDArray[np.float64]

    @property
    def gauc(self) -> float:
        """The mean of the users' AUC weighted by their impressions; NaN where no user has both labels."""
        return float(np.average(self.auc, weights=self.impressions)) if len(self.auc) else float("nan")


def user_auc(
    users: npt.NDArray[np.int64], scores: npt.NDArray[np.floating], labels: npt.NDArray[np.bool_]
) -> UserAUC:
    """AUC of each user's impressions; users with one label only have none (Zhou et al., DIN, KDD 2018).

    users, scores, labels: (impressions,). AUC is the chance that a positive stands above a negative, equal
    scores counting a half (Mann and Whitney 1947). Raises ValueError for a score that is NaN.
    """
    if np.isnan(scores).any():
        raise ValueError(f"score of impression {np.flatnonzero(np.isnan(scores))[0]} is not a number")
    order = np.lexsort((scores, users))
    users, scores, labels = users[order], scores[order], labels[order]
    _, starts, number_of, sizes = np.unique(users, return_index=True, return_inverse=True, return_counts=True)
    places = np.arange(len(users)) - starts[number_of] + 1.0  # from 1, within the user
    # equal scores of a user share the mean of their places
    run = np.ones(len(users), np.bool_)
    run[1:] = (users[1:] != users[:-1]) | (scores[1:] != scores[:-1])
    run_of = np.cumsum(run) - 1
    ranks = (np.bincount(run_of, places) / np.bincount(run_of))[run_of]
    positives = np.bincount(number_of, labels, minlength=len(sizes))
    negatives = sizes - positives
    above = np.bincount(number_of, ranks * labels, minlength=len(sizes)) - positives * (positives + 1) / 2
    both = (positives > 0) & (negatives > 0)
    return UserAUC(
        users=users[starts][both],
        auc=above[both] / (positives * negatives)[both],
        impressions=sizes[both].astype(np.float64),
    )
