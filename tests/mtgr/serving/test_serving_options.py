"""How an engine is set up: options reach vLLM, and those that contradict each other are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from quantized import WIDTHS, calibration_log
from serving import random_checkpoint

from mtgr.checkpoint import ARCHITECTURE, MODEL_TYPE, Checkpoint
from mtgr.errors import InputError
from mtgr.presets import PRESETS
from mtgr.quantization.run import quantize_checkpoint
from mtgr.requests import MAX_SLATE
from mtgr.serving.options import (
    EngineOptions,
    engine_arguments,
    executor_class,
    replica_options,
)

pytestmark = pytest.mark.vllm


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_num_batched_tokens": 100}, "max_num_batched_tokens is 100, where max_num_seqs"),
        (
            {"max_num_batched_tokens": 81, "max_num_seqs": 4, "enable_chunked_prefill": False},
            "max_num_batched_tokens is 81, where 145 or more is wanted",
        ),
        ({"kv_cache_gib": 1e-5}, r"kv_cache_gib is 1e-05, where \S+ or more is wanted: .* 145 tokens"),
        ({"quantization": "fp8"}, "quantization is 'fp8', where 'fp8_per_channel' or a GPU is wanted"),
        ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype is 'fp8', where a GPU is wanted"),
        ({"tensor_parallel_size": 3}, "tensor_parallel_size is 3, where a divisor of n_heads 2 is wanted"),
        (
            {"dtype": "float16", "scheduling": "vllm"},
            "dtype is 'float16', where 'bfloat16' or 'float32' is wanted with scheduling 'vllm'",
        ),
    ],
)
def test_options_that_contradict_each_other_are_named(
    checkpoint: Checkpoint, changes: dict[str, Any], message: str
) -> None:
    """Before vLLM says so less clearly."""
    with pytest.raises(InputError, match=message):
        engine_arguments(EngineOptions(checkpoint=checkpoint.directory, **changes), checkpoint)


def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let vLLM say that it runs on one."""
    from vllm.platforms import current_platform

    monkeypatch.setattr(type(current_platform), "is_cpu", lambda self: False)


def test_what_a_gpu_alone_has_is_taken_there(monkeypatch: pytest.MonkeyPatch, checkpoint: Checkpoint) -> None:
    """FP8, bfloat16 by itself, a cache as large as the weights leave, and devices for each replica."""
    on_gpu(monkeypatch)
    options = EngineOptions(
        checkpoint=checkpoint.directory, dtype="auto", quantization="fp8", kv_cache_dtype="fp8", replicas=2
    )
    first, second = (engine_arguments(one, checkpoint) for one in replica_options(options))
    wanted = {
        "dtype": "bfloat16",
        "quantization": "fp8_per_tensor",
        "kv_cache_dtype": "fp8",
        "kv_cache_memory_bytes": None,
        "gpu_memory_utilization": 0.9,
        "device_ids": [0],
    }
    assert wanted.items() <= first.items()
    assert second["device_ids"] == [1]
    with pytest.raises(
        InputError, match="dtype is 'float32', where 'bfloat16' or 'float16' is wanted with quantiz"
    ):
        engine_arguments(structs.replace(options, dtype="float32"), checkpoint)


def test_a_quantised_checkpoint_asks_for_what_serves_it(tmp_path: Path) -> None:
    """A type that its kernels have, no other quantisation, and groups that are whole on each device."""
    source = random_checkpoint(tmp_path / "source", **WIDTHS)
    made = quantize_checkpoint(source, tmp_path / "awq", "awq", calibration_log(3))
    for changes, message in (
        ({}, "dtype is 'float32', where 'bfloat16' or 'float16' is wanted for a checkpoint in awq"),
        (
            {"quantization": "fp8"},
            "quantization is 'fp8', where none is wanted: .* is quantised by awq already",
        ),
        (
            {"dtype": "auto", "tensor_parallel_size": 2},
            "d_model is 32, where a multiple of 64 is wanted for awq",
        ),
    ):
        with pytest.raises(InputError, match=message):
            engine_arguments(EngineOptions(checkpoint=made.directory, **changes), made)
    assert (
        engine_arguments(EngineOptions(checkpoint=made.directory, dtype="auto"), made)["dtype"] == "bfloat16"
    )


def test_times_take_their_place_in_the_cache(checkpoints: dict[str, Checkpoint]) -> None:
    """The least cache that is taken is larger by four numbers of each key."""
    plain, timed = checkpoints["plain"], checkpoints["everything"]
    options = EngineOptions(checkpoint=plain.directory, kv_cache_gib=6.8e-5)
    engine_arguments(options, plain)
    with pytest.raises(InputError, match="kv_cache_gib"):
        engine_arguments(options, timed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": "softmax"}, "attention is 'softmax', where the engine serves 'silu'"),
        ({"mask": "mixed"}, "mask is 'mixed', where the engine serves 'causal'"),
        ({"attention": "softmax", "mask": "mixed"}, "'silu'; mask is 'mixed', where the engine serves"),
    ],
)
def test_a_model_that_no_engine_serves_is_named_at_once(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """With the checkpoint, each field that is in the way and what it would have to be."""
    from mtgr.serving.engine import RecommendationEngine

    directory = random_checkpoint(tmp_path / "checkpoint", **changes)
    with pytest.raises(InputError, match=message) as refusal:
        RecommendationEngine(EngineOptions(checkpoint=directory))
    assert str(refusal.value).startswith(f"{directory}: ")


def test_every_option_reaches_vllm(checkpoint: Checkpoint) -> None:
    """Under vLLM's names for them."""
    options = EngineOptions(
        checkpoint=checkpoint.directory,
        kv_cache_gib=0.5,
        memory_utilization=0.2,
        dtype="auto",
        tensor_parallel_size=2,
        block_size=32,
        enable_prefix_caching=False,
        enable_chunked_prefill=True,
        max_num_seqs=7,
        max_num_batched_tokens=500,
        seed=3,
    )
    arguments = engine_arguments(options, checkpoint)
    wanted = {
        "model": str(checkpoint.directory),
        "kv_cache_memory_bytes": 1 << 29,
        "gpu_memory_utilization": 0.2,
        "dtype": "float32",
        "tensor_parallel_size": 2,
        "distributed_executor_backend": executor_class(2),
        "block_size": 32,
        "enable_prefix_caching": False,
        "enable_chunked_prefill": True,
        "max_num_seqs": 7,
        "max_num_batched_tokens": 500,
        "seed": 3,
        "max_model_len": checkpoint.config.max_length + MAX_SLATE,
    }
    assert wanted.items() <= arguments.items()


def test_the_plugin_can_be_loaded_again_and_again() -> None:
    """vLLM loads it in each of its processes, and others may have before."""
    from transformers import AutoConfig
    from vllm import ModelRegistry
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    from mtgr.serving.hf_config import MTGRConfig, model_config_of
    from mtgr.serving.plugin import register

    register()
    register()
    assert ARCHITECTURE in ModelRegistry.get_supported_archs()
    assert AttentionBackendEnum.CUSTOM.get_path() == "mtgr.serving.attention.SiluAttentionBackend"
    read = AutoConfig.for_model(MODEL_TYPE, model=PRESETS["tiny"].to_dict())
    assert isinstance(read, MTGRConfig)
    assert model_config_of(read) == PRESETS["tiny"]


def test_a_checkpoint_that_is_none_is_named(tmp_path: Path) -> None:
    """As everywhere that a checkpoint is asked for."""
    from mtgr.serving.engine import RecommendationEngine

    with pytest.raises(InputError, match="no such checkpoint directory"):
        RecommendationEngine(EngineOptions(checkpoint=tmp_path / "none"))
