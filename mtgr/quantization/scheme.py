"""How a checkpoint is quantised: which of its tensors, in which layout, and what vLLM is told of it.

The layout is that of compressed-tensors, which vLLM's own quantised linears read. int8: weights in 8 bits with a scale
for each output channel, activations rounded to 8 bits token by token. awq: weights in 4 bits with a scale and a zero
point for each group of inputs, activations as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from msgspec import Struct

from mtgr.config import ModelConfig
from mtgr.errors import InputError

Method = Literal["int8", "awq"]
Shape = tuple[int, ...]

GROUP_SIZES: Final = (128, 64, 32)
"""Inputs that share a scale, the first that divides all widths is taken: fewer scales, less memory."""

PACKED: Final = 8
"""Numbers of 4 bits in one of 32."""

_WIDTHS: Final = {"int8": 16, "awq": 32}
"""What vLLM's kernels want the widths of a device to be multiples of."""


class Quantization(Struct, frozen=True):
    """A method and, with awq, the inputs of a group."""

    method: Method
    group_size: int = 0

    @classmethod
    def of(cls, method: Method, config: ModelConfig) -> Quantization:
        """As the widths of a model allow; InputError names one that allows none."""
        group_size = 0
        if method == "awq":
            inputs = {inner for _, inner in linear_shapes(config).values()}
            fitting = [size for size in GROUP_SIZES if all(inner % size == 0 for inner in inputs)]
            group_size = fitting[0] if fitting else GROUP_SIZES[-1]
        made = cls(method, group_size)
        made.check_shards(config, 1)
        return made

    def check_shards(self, config: ModelConfig, ranks: int) -> None:
        """InputError if the widths that each of so many devices has do not fit the kernels."""
        multiple = _WIDTHS[self.method]
        for field, width in widths(config).items():
            if width % (multiple * ranks):
                raise InputError(
                    f"{field} is {width}, where a multiple of {multiple * ranks} is wanted for {self.method} on "
                    f"{ranks} device{'s' * (ranks > 1)}"
                )
        if ranks > 1 and self.group_size:
            for field in ("n_heads * d_v", "d_ff"):
                width = widths(config).get(field, 0)
                if width % (self.group_size * ranks):
                    raise InputError(
                        f"{field} is {width}, where a multiple of {self.group_size * ranks} is wanted for groups of "
                        f"{self.group_size} on {ranks} devices"
                    )

    def check_dtype(self, dtype: str) -> None:
        """InputError if vLLM has no kernel for activations of this type."""
        if self.method == "awq" and dtype == "float32":
            raise InputError(
                "dtype is 'float32', where 'bfloat16' or 'float16' is wanted for a checkpoint in awq"
            )

    def shapes(self, config: ModelConfig) -> dict[str, dict[str, Shape]]:
        """For each quantised weight the names and shapes of the tensors in its place."""
        return {
            f"{name}.weight": {f"{name}.{part}": shape for part, shape in self._parts(outer, inner).items()}
            for name, (outer, inner) in linear_shapes(config).items()
        }

    def _parts(self, outer: int, inner: int) -> dict[str, Shape]:
        if self.method == "int8":
            return {"weight": (outer, inner), "weight_scale": (outer, 1)}
        groups = inner // self.group_size
        return {
            "weight_packed": (outer, inner // PACKED),
            "weight_scale": (outer, groups),
            "weight_zero_point": (outer // PACKED, groups),
            "weight_shape": (2,),
        }

    def to_config(self) -> dict[str, Any]:
        """What a checkpoint's `quantization_config` says, in the words of compressed-tensors."""
        weights: dict[str, Any] = {"type": "int", "dynamic": False}
        group: dict[str, Any] = {"targets": ["Linear"], "weights": weights}
        if self.method == "int8":
            weights |= {"num_bits": 8, "symmetric": True, "strategy": "channel"}
            group["input_activations"] = {
                "type": "int",
                "num_bits": 8,
                "symmetric": True,
                "strategy": "token",
                "dynamic": True,
            }
        else:
            weights |= {
                "num_bits": 4,
                "symmetric": False,
                "strategy": "group",
                "group_size": self.group_size,
            }
        return {
            "quant_method": "compressed-tensors",
            "format": "int-quantized" if self.method == "int8" else "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": [],
        }


def parse_quantization(data: Any, source: str) -> Quantization | None:
    """What a `quantization_config` says, None for none; InputError if `mtgr-stream quantize` writes no such."""
    if data is None:
        return None
    known = [Quantization("int8"), *(Quantization("awq", size) for size in GROUP_SIZES)]
    for quantization in known:
        if isinstance(data, Mapping) and data == quantization.to_config():
            return quantization
    raise InputError(f"{source}: quantization_config is none of those that `mtgr-stream quantize` writes")


def linear_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of the linears that are quantised, by name; embeddings and the head are not among them."""
    width_v, width_qk = config.n_heads * config.d_v, config.n_heads * config.d_qk
    layer = {"uvqk": (2 * (width_v + width_qk), config.d_model), "out": (config.d_model, width_v)}
    if config.d_ff:
        layer |= {"mlp_up": (config.d_ff, config.d_model), "mlp_down": (config.d_model, config.d_ff)}
    return {
        f"layers.{index}.{name}": shape for index in range(config.n_layers) for name, shape in layer.items()
    }


def widths(config: ModelConfig) -> dict[str, int]:
    """The widths that linears have or that are divided among devices, by what they follow from."""
    found = {
        "d_model": config.d_model,
        "n_heads * d_v": config.n_heads * config.d_v,
        "n_heads * d_qk": config.n_heads * config.d_qk,
    }
    return found | ({"d_ff": config.d_ff} if config.d_ff else {})
