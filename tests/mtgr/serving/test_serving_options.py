"""How an engine is set up: what the user has set stays, and options that contradict each other are named."""

from __future__ import annotations

import logging
import os
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
    prepare_vllm,
    replica_options,
)
from mtgr.serving.quiet import quieten

pytestmark = pytest.mark.vllm

NAMES = ("OMP_NUM_THREADS", "GOMP_CPU_AFFINITY", "VLLM_CPU_OMP_THREADS_BIND", "VLLM_NO_USAGE_STATS")


@pytest.fixture(autouse=True)
def _environment_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())
    for name in NAMES:
        os.environ.pop(name, None)


def test_a_core_is_left_to_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    """On one core the engine has that one."""
    for cores, threads in ((1, "1"), (2, "1"), (8, "7")):
        monkeypatch.setattr("vllm.utils.torch_utils.available_cpu_count", lambda cores=cores: cores)
        os.environ.pop("OMP_NUM_THREADS", None)
        prepare_vllm()
        assert os.environ["OMP_NUM_THREADS"] == threads


@pytest.mark.parametrize("cores", ["0-3,8", "2", "auto", "nobind"])
def test_what_the_user_has_set_stays(cores: str) -> None:
    """vLLM's own variables keep their meaning, and OpenMP's go before ours."""
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = cores
    os.environ["VLLM_NO_USAGE_STATS"] = "0"
    prepare_vllm()
    bound = {"0-3,8": ("5", "0-3,8"), "2": ("1", "2")}
    if cores in bound:
        assert (os.environ["OMP_NUM_THREADS"], os.environ["GOMP_CPU_AFFINITY"]) == bound[cores]
    assert os.environ["VLLM_NO_USAGE_STATS"] == "0"
    os.environ["OMP_NUM_THREADS"] = "3"
    prepare_vllm()
    assert os.environ["OMP_NUM_THREADS"] == "3"


def test_workers_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that compute at once: those of an engine on several ranks, and the replicas of one."""
    monkeypatch.setattr("vllm.utils.torch_utils.available_cpu_count", lambda: 9)
    prepare_vllm(workers=4)
    assert os.environ["OMP_NUM_THREADS"] == "2"
    assert os.environ["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "0-1|2-3"
    prepare_vllm(workers=2)
    with pytest.raises(InputError, match="VLLM_CPU_OMP_THREADS_BIND"):
        prepare_vllm(workers=3)


@pytest.mark.parametrize("cores", ["0-1|2-3", "all", "", "1-"])
def test_cores_that_are_none_are_named(cores: str) -> None:
    """The variable is vLLM's, which knows more ways to write it."""
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = cores
    with pytest.raises(InputError, match=r"VLLM_CPU_OMP_THREADS_BIND is .* where cores are wanted"):
        prepare_vllm()


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


def test_harmless_warnings_are_left_out_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never an error, nor a warning that is not known."""
    kept: list[str] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: kept.append(record.getMessage()))
    logger = logging.getLogger("vllm.renderers.base")
    monkeypatch.setattr(logger, "handlers", [handler])
    quieten()
    quieten()
    logger.warning("Chat template warmup failed", exc_info=True)
    logger.error("Chat template warmup failed for good")
    logger.warning("Something else failed")
    assert kept == ["Chat template warmup failed for good", "Something else failed"]


def test_a_checkpoint_that_is_none_is_named(tmp_path: Path) -> None:
    """As everywhere that a checkpoint is asked for."""
    from mtgr.serving.engine import RecommendationEngine

    with pytest.raises(InputError, match="no such checkpoint directory"):
        RecommendationEngine(EngineOptions(checkpoint=tmp_path / "none"))
