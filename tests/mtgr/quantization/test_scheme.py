"""How quantised checkpoints are laid out: only what vLLM reads, and what does not fit is named."""

from __future__ import annotations

import pytest

from mtgr.errors import InputError
from mtgr.presets import PRESETS
from mtgr.quantization.scheme import Quantization, linear_shapes, parse_quantization

CONFIG = PRESETS["tiny"].replace(d_ff=128)


@pytest.mark.parametrize("quantization", [Quantization("int8"), Quantization("awq", 64)])
def test_what_is_written_is_read(quantization: Quantization) -> None:
    """And nothing else is."""
    data = quantization.to_config()
    assert parse_quantization(data, "config.json") == quantization
    with pytest.raises(InputError, match=r"config\.json: quantization_config is none of those"):
        parse_quantization(data | {"quant_method": "fp8"}, "config.json")
    assert parse_quantization(None, "config.json") is None


def test_vllm_reads_the_layout() -> None:
    """compressed-tensors' own types take what is written, and know the schemes by it."""
    from compressed_tensors.quantization import QuantizationConfig

    for quantization, bits, strategy in (
        (Quantization("int8"), 8, "channel"),
        (Quantization("awq", 128), 4, "group"),
    ):
        read = QuantizationConfig.model_validate(quantization.to_config())
        weights = read.config_groups["group_0"].weights
        assert (weights.num_bits, weights.strategy) == (bits, strategy)


def test_every_linear_of_the_layers_is_quantised_and_nothing_else() -> None:
    """By the model's own modules: embeddings, norms, biases and the head are none of them."""
    import torch
    from torch import nn

    from mtgr.model.mtgr import MTGR

    with torch.device("meta"):
        model = MTGR(CONFIG)
    found = {
        name: (module.out_features, module.in_features)
        for name, module in model.layers.named_modules(prefix="layers")
        if isinstance(module, nn.Linear)
    }
    assert linear_shapes(CONFIG) == found


def test_the_largest_group_that_fits_is_taken() -> None:
    """Of 128, 64 and 32."""
    assert Quantization.of("awq", CONFIG).group_size == 64
    assert Quantization.of("awq", PRESETS["seed-high"]).group_size == 128
    assert Quantization.of("int8", CONFIG).group_size == 0


def test_widths_that_do_not_fit_are_named() -> None:
    """Of the whole model, and of what each of several devices has."""
    with pytest.raises(
        InputError, match=r"d_model is 50, where a multiple of 16 is wanted for int8 on 1 device$"
    ):
        Quantization.of("int8", PRESETS["hstu-ml1m"])
    with pytest.raises(
        InputError, match=r"d_model is 50, where a multiple of 32 is wanted for awq on 1 device$"
    ):
        Quantization.of("awq", PRESETS["hstu-ml1m"])
    with pytest.raises(
        InputError, match=r"n_heads \* d_v is 64, where a multiple of 128 is wanted for groups of 64"
    ):
        Quantization("awq", 64).check_shards(CONFIG, 2)
    Quantization("int8").check_shards(CONFIG, 2)
