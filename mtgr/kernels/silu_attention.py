"""SiLU attention in plain PyTorch: the reference that every faster kernel must agree with."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def silu_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, *, scale: float, length: int, bias: Tensor | None = None
) -> Tensor:
    """A V with A = silu(Q K^T * scale + bias) * (1 / length) * mask: no softmax, and the mask after the SiLU.

    q: (..., L, d_qk); k: (..., S, d_qk); v: (..., S, d_v); mask: broadcasts to (..., L, S), nonzero where a
    query sees a key; bias: broadcasts likewise. `length` is a constant of the model, so a cached key and value
    stays exact as the sequence grows. Returns (..., L, d_v). HSTU, arXiv 2402.17152, section 3.
    """
    scores = q @ k.transpose(-1, -2) * scale  # (..., L, S)
    if bias is not None:
        scores = scores + bias
    return functional.silu(scores).div(length).mul(mask) @ v


def softmax_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, *, scale: float, bias: Tensor | None = None
) -> Tensor:
    """A V with A = softmax(Q K^T * scale + bias), a Transformer's, for comparison; shapes as in `silu_attention`."""
    scores = q @ k.transpose(-1, -2) * scale
    if bias is not None:
        scores = scores + bias
    return scores.masked_fill(~mask, -float("inf")).softmax(-1) @ v
