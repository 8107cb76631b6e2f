"""The options of commands that start an engine."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar, get_args

import click

from mtgr.serving.options import CacheDtype, Dtype, EngineOptions, OnlineQuantization
from stream.numbers import FiniteFloatRange

Command = TypeVar("Command", bound=Callable[..., Any])

DEFAULTS: Final = EngineOptions(checkpoint=Path())
"""Of no checkpoint yet: who runs the engine names one."""

_OPTIONS: Final = (
    click.option(
        "--kv-cache-gib",
        type=FiniteFloatRange(0, min_open=True),
        help="Memory of each device's KV cache.  [default: 1 on a CPU, on a GPU what the weights leave]",
    ),
    click.option(
        "--memory-utilization",
        type=FiniteFloatRange(0, 1, min_open=True),
        help="Share of a GPU's memory that the engine takes.  [default: 0.9]",
    ),
    click.option(
        "--dtype",
        default=DEFAULTS.dtype,
        show_default=True,
        type=click.Choice(get_args(Dtype)),
        help="Number format of the model; auto is bfloat16 on a GPU and for a checkpoint in awq, else float32.",
    ),
    click.option(
        "--quantization",
        type=click.Choice(get_args(OnlineQuantization)),
        help="Keep the weights of linears in FP8; on a CPU by channel only. INT8 and AWQ: see `mtgr-stream quantize`.",
    ),
    click.option(
        "--kv-cache-dtype",
        default=DEFAULTS.kv_cache_dtype,
        show_default=True,
        type=click.Choice(get_args(CacheDtype)),
        help="Number format of the KV cache; fp8 on a GPU only.",
    ),
    click.option(
        "--tensor-parallel-size",
        default=DEFAULTS.tensor_parallel_size,
        show_default=True,
        type=click.IntRange(1, 64),
        help="Devices that share each layer of the model.",
    ),
)


def engine_options(command: Command) -> Command:
    """Give a command these options, and what they say as its argument `engine`."""

    @functools.wraps(command)
    def with_engine(*args: Any, **values: Any) -> Any:
        chosen = {name: values.pop(name) for name in _NAMES}
        return command(*args, engine=EngineOptions(checkpoint=Path(), **chosen), **values)

    decorated: Any = with_engine
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]


_NAMES: Final = (
    "kv_cache_gib",
    "memory_utilization",
    "dtype",
    "quantization",
    "kv_cache_dtype",
    "tensor_parallel_size",
)
