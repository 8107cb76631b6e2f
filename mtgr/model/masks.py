"""Who sees whom: attention masks over the tokens of a sequence."""

from __future__ import annotations

import torch
from torch import Tensor


def causal_mask(length: int, device: torch.device | None = None) -> Tensor:
    """(length, length) bool: a token sees itself and its past, so what is cached stays exact."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()
