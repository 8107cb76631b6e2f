"""AWQ: weights in 4 bits whose errors fall where activations are small (Lin et al., arXiv 2306.00978).

Inputs of a linear that are large on average get a larger part of the grid: the weights of input i are multiplied by
s_i before they are rounded, and the input divided by it, which the group layer norm before the linear does at no cost.
s_i = m_i^alpha of the mean m_i of |x_i|, with the alpha for which the linear's output on calibration data changes
least; then groups are clipped, each by as much as serves it best. All errors are computed from the second moments of
the inputs, H = sum of x x^T: |(W' - W) x|^2 summed over the data is the trace of (W' - W) H (W' - W)^T.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from mtgr.model.layer import HSTULayer
from mtgr.model.norm import GroupLayerNorm
from mtgr.quantization.calibration import InputMoments, Moments
from mtgr.quantization.codes import awq_tensors, group_codes, group_scales

_ALPHAS: Final = tuple(step / 20 for step in range(20))
_CLIPS: Final = tuple(1 - step / 20 for step in range(1, 10))
_ROWS: Final = 1 << 22
"""Weights whose clips are searched at once."""


def quantise_layer(layer: HSTULayer, name: str, moments: InputMoments, group_size: int) -> dict[str, Tensor]:
    """The tensors of one layer that change: codes of its linears, and the norms that the scales are folded into."""
    changed: dict[str, Tensor] = {}
    linears = [("uvqk", "norm_in"), ("out", "norm_attention")]
    if layer.has_mlp:
        linears.append(("mlp_up", "norm_mlp"))
    for linear_name, norm_name in linears:
        of_inputs = moments.of[f"{name}.{linear_name}"]
        weight = _weight(layer, linear_name)
        scale = best_scale(weight, of_inputs, moments.tokens, group_size)
        norm = getattr(layer, norm_name)
        assert isinstance(norm, GroupLayerNorm)
        changed[f"{name}.{norm_name}.weight"] = norm.weight.detach() / scale
        changed[f"{name}.{norm_name}.bias"] = norm.bias.detach() / scale
        blocks = diagonal_blocks(of_inputs.product / torch.outer(scale, scale), group_size)
        scaled = weight * scale
        clip = best_clip(scaled, blocks, group_size)
        changed |= awq_tensors(f"{name}.{linear_name}", scaled, group_size, clip)
    if layer.has_mlp:
        weight, blocks = _weight(layer, "mlp_down"), moments.of[f"{name}.mlp_down"].product
        changed |= awq_tensors(f"{name}.mlp_down", weight, group_size, best_clip(weight, blocks, group_size))
    return changed


def best_scale(weight: Tensor, moments: Moments, tokens: int, group_size: int) -> Tensor:
    """(in,) factors of the inputs' weights with which rounding them changes the output least."""
    mean = (moments.size / max(tokens, 1)).clamp(min=1e-6)
    best, least = torch.ones_like(mean), torch.inf
    for alpha in _ALPHAS:
        scale = mean.pow(alpha)
        scale = scale / (scale.max() * scale.min()).sqrt()
        error = output_error(rounded(weight * scale, group_size) / scale - weight, moments.product)
        if error < least:
            best, least = scale, error
    return best


def best_clip(weight: Tensor, blocks: Tensor, group_size: int) -> Tensor:
    """(out, groups, 1) how much of its range each group keeps; blocks: (groups, group, group) of its inputs' H."""
    grouped = weight.view(len(weight), -1, group_size)
    rows = max(1, _ROWS // weight.shape[1])
    return torch.cat([_best_clip(some, blocks) for some in torch.split(grouped, rows)])


def _best_clip(grouped: Tensor, blocks: Tensor) -> Tensor:
    clip = grouped.new_ones((*grouped.shape[:2], 1))
    least = _group_errors(grouped, clip, blocks)
    for ratio in _CLIPS:
        tried = torch.full_like(clip, ratio)
        errors = _group_errors(grouped, tried, blocks)
        better = errors < least
        clip[better], least[better] = ratio, errors[better]
    return clip


def _group_errors(grouped: Tensor, clip: Tensor, blocks: Tensor) -> Tensor:
    """(out, groups): what each group by itself adds to the error of its output."""
    scale, zero = group_scales(grouped, clip)
    error = (group_codes(grouped, scale, zero) - zero) * scale - grouped
    return torch.einsum("ogi,gij,ogj->og", error, blocks, error)


def rounded(weight: Tensor, group_size: int) -> Tensor:
    """(out, in) weights as they come back from their codes."""
    grouped = weight.view(len(weight), -1, group_size)
    scale, zero = group_scales(grouped)
    return ((group_codes(grouped, scale, zero) - zero) * scale).flatten(1)


def output_error(error: Tensor, product: Tensor) -> float:
    """Sum of squares by which the output differs where the weights differ by `error`."""
    return float(((error @ product) * error).sum())


def diagonal_blocks(product: Tensor, group_size: int) -> Tensor:
    """(groups, group, group) of (in, in)."""
    groups = len(product) // group_size
    blocks = product.view(groups, group_size, groups, group_size)
    return blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1).contiguous()


def _weight(layer: HSTULayer, name: str) -> Tensor:
    linear = getattr(layer, name)
    assert isinstance(linear, nn.Linear)
    return linear.weight.detach().float()
