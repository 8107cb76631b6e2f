"""Weights to integers and back: what is lost is half a step, and nothing in packing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtgr.config import ModelConfig
from mtgr.presets import PRESETS
from mtgr.quantization.codes import (
    awq_tensors,
    channel_codes,
    dequantise,
    group_scales,
    int8_tensors,
    pack,
    unpack,
)
from mtgr.quantization.scheme import Method, Quantization, linear_shapes

CONFIG: ModelConfig = PRESETS["tiny"].replace(d_ff=128, n_layers=1)


@given(st.lists(st.integers(0, 15), min_size=8, max_size=8))
def test_packed_codes_come_back(codes: list[int]) -> None:
    """The first in the lowest bits, as compressed-tensors packs them."""
    packed = pack(torch.tensor([codes]))
    assert packed.dtype == torch.int32
    assert unpack(packed).tolist() == [codes]
    assert int(packed) & 0xFFFFFFFF == sum(code << 4 * place for place, code in enumerate(codes))


def test_packing_is_that_of_compressed_tensors() -> None:
    """Whose numbers of 4 bits are signed before they are packed."""
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    codes = torch.randint(0, 16, (6, 32))
    assert pack(codes).equal(pack_to_int32((codes - 8).to(torch.int8), 4))


@pytest.mark.parametrize("method", ["int8", "awq"])
def test_weights_come_back_within_half_a_step(method: Method) -> None:
    """Zeros exactly, all-zero rows among them, and the shapes are those that the scheme promises."""
    quantization = Quantization.of(method, CONFIG)
    shapes = quantization.shapes(CONFIG)
    tensors, weights = {}, {}
    for name, shape in linear_shapes(CONFIG).items():
        weight = torch.randn(shape) * torch.rand(shape[0], 1)
        weight[1] = 0.0
        weight[:, 3] = 0.0
        weights[f"{name}.weight"] = weight
        tensors |= (
            int8_tensors(name, weight)
            if method == "int8"
            else awq_tensors(name, weight, quantization.group_size)
        )
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        part: shape for parts in shapes.values() for part, shape in parts.items()
    }
    back = dequantise(tensors, quantization, CONFIG)
    assert set(back) == set(weights)
    for name, weight in weights.items():
        if method == "int8":
            step = channel_codes(weight)[1]
        else:
            scale, _ = group_scales(weight.view(len(weight), -1, quantization.group_size))
            # zero points are rounded too
            step = 2 * scale.expand(-1, -1, quantization.group_size).flatten(1)
        assert ((back[name] - weight).abs() <= 0.51 * step).all()
        assert not back[name][1].any()
        assert not back[name][:, 3].any()
