"""GroupLN: a layer norm with a weight and a bias of its own for each token group."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtgr.config import GROUPS


class GroupLayerNorm(nn.Module):
    """Layer norm over the last dimension, scaled and shifted by the token's group (MTGR, arXiv 2505.18654).

    weight, bias: (GROUPS, width), or (1, width) where the groups share one.
    """

    def __init__(self, width: int, eps: float, groups: int = GROUPS) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(groups, width))
        self.bias = nn.Parameter(torch.zeros(groups, width))
        self.eps = eps

    def forward(self, x: Tensor, groups: Tensor) -> Tensor:
        """x: (..., width); groups: (..., GROUPS), the one-hot group of each token in x's dtype."""
        if len(self.weight) == 1:
            return functional.layer_norm(x, x.shape[-1:], self.weight[0], self.bias[0], self.eps)
        normed = functional.layer_norm(x, x.shape[-1:], eps=self.eps)
        # a product with the one-hot, not a gather: its gradient is a matrix product, not a scatter
        return torch.addcmul(groups @ self.bias, normed, groups @ self.weight)
