"""How an engine is run, and what that means to vLLM."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct

from mtgr.checkpoint import ARCHITECTURE, Checkpoint
from mtgr.config import TIME_LANES, ModelConfig
from mtgr.errors import InputError
from mtgr.requests import MAX_SLATE
from mtgr.serving.quiet import quieten

Dtype = Literal["auto", "float32", "bfloat16"]
Scheduling = Literal["sessions", "vllm"]

_ENVIRONMENT: Final = {
    "VLLM_NO_USAGE_STATS": "1",  # vLLM tells its makers nothing
    "VLLM_CONFIGURE_LOGGING": "0",  # it logs through our logging
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # the other one takes neither prompt embeddings nor our mask
}
# the compiler would take 2 to 20 s at the first list, for one small function of the sampler
_CPU_ENVIRONMENT: Final = {"TORCH_COMPILE_DISABLE": "1"}


class EngineOptions(Struct, frozen=True, kw_only=True):
    """How the engine of a checkpoint is run."""

    checkpoint: Path
    kv_cache_gib: Annotated[float, Meta(gt=0)] = 1.0
    """Memory of the KV cache; where vLLM's own VLLM_CPU_KVCACHE_SPACE is set, that is taken."""
    memory_utilization: Annotated[float, Meta(gt=0, le=1)] = 0.3
    """Share of the device's memory that must be free when the engine starts."""
    dtype: Dtype = "float32"
    """Of weights, activations and cache; auto is float32 on a CPU and bfloat16 elsewhere."""
    block_size: Annotated[int, Meta(ge=1, le=1024)] = 16
    """Tokens of a cache block; only whole blocks are found again."""
    enable_prefix_caching: bool = True
    enable_chunked_prefill: bool = True
    max_num_seqs: Annotated[int, Meta(ge=1)] = 256
    """Most requests of a step."""
    max_num_batched_tokens: Annotated[int, Meta(ge=1)] = 8192
    """Most new tokens of a step; longer prompts are computed in chunks."""
    scheduling: Scheduling = "sessions"
    """sessions: users' tokens stay in the cache and only what is new is sent; vllm: by vLLM's own scheduler, which gets
    the whole history as a prompt each time."""
    seed: int = 0


def check_served(config: ModelConfig, source: str = "model config") -> None:
    """InputError naming each field of a model that no engine serves, and what would be right."""
    wrong = [
        f"{field} is {value!r}, where the engine serves {served!r}"
        for field, value, served in (
            ("attention", config.attention, "silu"),
            (
                "mask",
                config.mask,
                "causal",
            ),  # under any other, what is cached of the past changes with the future
        )
        if value != served
    ]
    if wrong:
        raise InputError(f"{source}: {'; '.join(wrong)}")


def head_size(config: ModelConfig) -> int:
    """Numbers of a key in the cache: the key's own, and the bytes of its time where attention asks for it."""
    return config.d_qk + (TIME_LANES if config.time_bias else 0)


def engine_arguments(options: EngineOptions, checkpoint: Checkpoint) -> dict[str, Any]:
    """The arguments of vLLM's LLM and AsyncEngineArgs alike.

    Raises InputError if the options contradict each other, or the model is none that the engine serves.
    """
    check_served(checkpoint.config, str(checkpoint.directory))
    from vllm.platforms import current_platform

    on_cpu = current_platform.is_cpu()
    longest = checkpoint.config.max_length + MAX_SLATE  # vLLM counts the videos it samples
    if options.max_num_batched_tokens < options.max_num_seqs:
        raise InputError(
            f"max_num_batched_tokens is {options.max_num_batched_tokens}, where max_num_seqs "
            f"({options.max_num_seqs}) or more is wanted"
        )
    if not options.enable_chunked_prefill and options.max_num_batched_tokens < longest:
        raise InputError(
            f"max_num_batched_tokens is {options.max_num_batched_tokens}, where {longest} or more is wanted "
            "when prompts are not computed in chunks"
        )
    dtype = options.dtype
    if dtype == "auto":
        dtype = "float32" if on_cpu else "bfloat16"
    _check_cache(options, checkpoint, longest, 4 if dtype == "float32" else 2)
    return {
        "model": str(checkpoint.directory),
        "skip_tokenizer_init": True,
        "enable_prompt_embeds": True,
        "generation_config": "vllm",
        "load_format": "safetensors",
        "dtype": dtype,
        "max_model_len": longest,
        "block_size": options.block_size,
        "kv_cache_memory_bytes": int(options.kv_cache_gib * (1 << 30)),
        "gpu_memory_utilization": options.memory_utilization,
        "enable_prefix_caching": options.enable_prefix_caching,
        "enable_chunked_prefill": options.enable_chunked_prefill,
        "max_num_seqs": options.max_num_seqs,
        "max_num_batched_tokens": options.max_num_batched_tokens,
        "seed": options.seed,
        # the sampler's scores of all videos but the seen ones, as many as are asked for
        "logits_processors": ["mtgr.serving.seen_videos:SeenVideosMask"],
        "logprobs_mode": "processed_logprobs",
        "max_logprobs": checkpoint.config.n_slots,
        "worker_extension_cls": "mtgr.serving.worker_extension.WorkerExtension",
        "distributed_executor_backend": "mtgr.serving.executor.OwnedExecutor",
        "enforce_eager": on_cpu,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }


def _check_cache(options: EngineOptions, checkpoint: Checkpoint, longest: int, number_bytes: int) -> None:
    """InputError if the KV cache cannot hold one longest sequence and the block that vLLM keeps to itself."""
    config = checkpoint.config
    token = config.n_layers * config.n_heads * (head_size(config) + config.d_v) * number_bytes
    least = (-(-longest // options.block_size) + 1) * options.block_size * token / (1 << 30)
    if options.kv_cache_gib < least:
        raise InputError(
            f"kv_cache_gib is {options.kv_cache_gib:g}, where {math.ceil(1e6 * least) / 1e6:g} or more is wanted: "
            f"so much does one sequence of {longest} tokens take"
        )


def prepare_vllm() -> None:
    """Import vLLM, which takes seconds the first time, and set all it reads from the environment.

    What the user has set stays. Raises InputError if that cannot be.
    """
    quieten()
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from vllm import ModelRegistry
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        for name, value in _CPU_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        _set_threads()
    from mtgr.serving.model import MTGRForRecommendation
    from mtgr.serving.plugin import register

    register()  # whatever plugins the user lets vLLM load
    # of a model it knows by name only, vLLM would learn what it can do in a process started for that
    ModelRegistry.register_model(ARCHITECTURE, MTGRForRecommendation)


def _set_threads() -> None:
    """Choose the threads of an engine process to come.

    One core is left to the daemon: with a thread on every core, each torch call waits for the thread that
    has to share its core, and a busy machine serves several times slower.
    """
    from vllm.utils.torch_utils import available_cpu_count

    cores = os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "auto")
    if cores in ("auto", "nobind"):
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cpu_count() - 1)))
        return
    # vLLM binds the workers it puts in processes of their own; within the engine's, OpenMP does
    if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", cores):
        raise InputError(f"VLLM_CPU_OMP_THREADS_BIND is {cores!r}, where cores are wanted, as in '0-3,8'")
    ranges = [part.partition("-")[::2] for part in cores.split(",")]
    threads = sum(int(last or first) - int(first) + 1 for first, last in ranges)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, threads)))
    os.environ.setdefault("GOMP_CPU_AFFINITY", cores)
