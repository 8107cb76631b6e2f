"""Weights to integers and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mtgr.config import ModelConfig
from mtgr.quantization.scheme import PACKED, Quantization

_BITS = 32 // PACKED
_MOST = (1 << _BITS) - 1


def channel_codes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(out, in) weights to int8 and their scales (out, 1) float32: w = code * scale, symmetric."""
    scale = (weight.float().abs().amax(1, keepdim=True) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    return (weight / scale).round().to(torch.int8), scale


def group_scales(weight: Tensor, clip: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(out, groups, group) weights to scales and zero points, both (out, groups, 1), zero itself being exact.

    The scales are numbers of bfloat16, so that no engine rounds them again. clip: (out, groups, 1), how much of its
    range a group keeps.
    """
    low = weight.amin(-1, keepdim=True).clamp(max=0)
    high = weight.amax(-1, keepdim=True).clamp(min=0)
    if clip is not None:
        low, high = low * clip, high * clip
    scale = ((high - low) / _MOST).clamp(min=1e-7).bfloat16().float()
    return scale, (-low / scale).round().clamp(0, _MOST)


def group_codes(weight: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Codes 0 to 15 of (out, groups, group) weights: w = (code - zero) * scale."""
    return ((weight / scale).round() + zero).clamp(0, _MOST)


def pack(codes: Tensor) -> Tensor:
    """(..., n) codes of 4 bits to (..., n / 8) int32, the first in the lowest bits."""
    shifts = torch.arange(0, 32, _BITS)
    lanes = codes.to(torch.int64).reshape(*codes.shape[:-1], -1, PACKED)
    joined = (lanes << shifts).sum(-1)
    return torch.where(joined >= 1 << 31, joined - (1 << 32), joined).to(torch.int32)


def unpack(packed: Tensor) -> Tensor:
    """What `pack` has packed, as int32."""
    shifts = torch.arange(0, 32, _BITS, dtype=torch.int32)
    return ((packed.unsqueeze(-1) >> shifts) & _MOST).flatten(-2)


def int8_tensors(name: str, weight: Tensor) -> dict[str, Tensor]:
    """The tensors in the place of the weight of a linear."""
    codes, scale = channel_codes(weight)
    return {f"{name}.weight": codes, f"{name}.weight_scale": scale}


def awq_tensors(name: str, weight: Tensor, group_size: int, clip: Tensor | None = None) -> dict[str, Tensor]:
    """The tensors in the place of the weight of a linear; clip: (out, groups, 1)."""
    grouped = weight.float().view(len(weight), -1, group_size)
    scale, zero = group_scales(grouped, clip)
    return {
        f"{name}.weight_packed": pack(group_codes(grouped, scale, zero).flatten(1)),
        f"{name}.weight_scale": scale.squeeze(-1).bfloat16(),
        f"{name}.weight_zero_point": pack(zero.squeeze(-1).T).T.contiguous(),
        f"{name}.weight_shape": torch.tensor(weight.shape),
    }


def dequantise(
    tensors: Mapping[str, Tensor], quantization: Quantization, config: ModelConfig
) -> dict[str, Tensor]:
    """The tensors of the model, float32 where they were quantised."""
    whole = dict(tensors)
    for weight, parts in quantization.shapes(config).items():
        found = {name.rpartition(".")[2]: whole.pop(name) for name in parts}
        scale = found["weight_scale"].float()
        if quantization.method == "int8":
            whole[weight] = found["weight"].float() * scale
            continue
        zero = unpack(found["weight_zero_point"].T).T.unsqueeze(-1)
        codes = unpack(found["weight_packed"]).view(*scale.shape, quantization.group_size)
        whole[weight] = ((codes - zero) * scale.unsqueeze(-1)).flatten(1)
    return whole
