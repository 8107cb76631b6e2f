"""What training knows of a target beside the video: the feedback it had, as a condition of its prediction."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class FeedbackConditions(nn.Module):
    """For each kind of feedback a vector that is added to the query, and a bias for each video.

    A log shows many videos that users skip. Left out, they teach nothing; learnt as they are, they teach to list what
    is skipped. With the kind as a condition, p(video | history, kind), they teach what the layers and embeddings share
    with the other targets, and what is particular to the kind stays in here. None of it is kept: the model that is
    served asks without a condition, which is how targets of all other kinds are learnt.
    """

    def __init__(self, kinds: int, d_model: int, n_indices: int) -> None:
        """All is zero: training begins as it would without conditions."""
        super().__init__()
        self.offsets = nn.Parameter(torch.zeros(kinds, d_model))
        self.biases = nn.Parameter(torch.zeros(kinds, n_indices))

    def chosen(self, conditions: Tensor) -> Tensor:
        """(M,) int64, as `mtgr.training.feedback.feedback_conditions` numbers them, to (M, kinds) of 0 and 1."""
        return functional.one_hot(conditions, len(self.offsets) + 1)[:, 1:].float()

    def added(self, chosen: Tensor) -> Tensor:
        """(M, kinds) as of `chosen` to the (M, d_model) that are added to the queries, before they are normalised."""
        return chosen @ self.offsets

    def widened(self, keys: Tensor, indices: Tensor) -> Tensor:
        """(n, d) keys of the videos with these (n,) indices to (n, d + kinds).

        A query that `chosen` is joined to meets them by the same product as before plus the video's bias.
        """
        return torch.cat([keys, self.biases[:, indices].T], dim=-1)
