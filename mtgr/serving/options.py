"""How an engine is run, and what that means to vLLM."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct, structs

from mtgr.checkpoint import Checkpoint
from mtgr.config import ModelConfig
from mtgr.errors import InputError
from mtgr.requests import MAX_SLATE
from mtgr.serving.served_config import check_served, head_size

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
OnlineQuantization = Literal["fp8", "fp8_per_channel", "fp8_per_block"]
CacheDtype = Literal["auto", "fp8"]
Scheduling = Literal["sessions", "vllm"]

CPU_CACHE_GIB: Final = 1.0
_MEMORY: Final = 0.9
_CPU_ONLINE: Final = "fp8_per_channel"  # the only one that vLLM has kernels for there
_ONLINE: Final = {"fp8": "fp8_per_tensor"}  # by itself vLLM means checkpoints in FP8 by "fp8"


class EngineOptions(Struct, frozen=True, kw_only=True):
    """How the engine of a checkpoint is run."""

    checkpoint: Path
    kv_cache_gib: Annotated[float, Meta(gt=0)] | None = None
    """Memory of the KV cache of each device. Where unset, 1 on a CPU, or vLLM's own VLLM_CPU_KVCACHE_SPACE if that is
    set; on a GPU what `memory_utilization` leaves beside the weights."""
    memory_utilization: Annotated[float, Meta(gt=0, le=1)] | None = None
    """Share of a device's memory that the engine takes, 0.9 where unset; on a CPU it has no say."""
    dtype: Dtype = "float32"
    """Of weights, activations and cache; auto is bfloat16 on a GPU and for a checkpoint in awq, else float32."""
    quantization: OnlineQuantization | None = None
    """How the weights of the layers' linears are stored after loading: FP8 with one scale for all, for each output
    channel or for each block. A checkpoint of `mtgr-stream quantize` brings its own and takes none here."""
    kv_cache_dtype: CacheDtype = "auto"
    """Of the KV cache; auto is that of the model."""
    tensor_parallel_size: Annotated[int, Meta(ge=1, le=64)] = 1
    """Devices, or processes of a CPU, that share each layer's heads and widths."""
    replicas: Annotated[int, Meta(ge=1, le=64)] = 1
    """Engines of the checkpoint that share the machine, each with devices or with a part of the cores of its own."""
    replica: Annotated[int, Meta(ge=0)] = 0
    """Which of them this one is."""
    dummy_weights: bool = False
    """Make the weights up rather than read them: for measuring the speed of models that nobody has trained."""
    block_size: Annotated[int, Meta(ge=1, le=1024)] | None = None
    """Tokens of a cache block. Where unset, 16 on a CPU, and on a GPU 64, which its kernel reads at once; by vLLM's
    scheduler only whole blocks are found again."""
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

    @property
    def workers(self) -> int:
        """Processes that compute at once, those of the other replicas included."""
        return self.replicas * self.tensor_parallel_size

    @property
    def devices(self) -> range:
        """Those of this replica, by their numbers among the visible ones."""
        first = self.replica * self.tensor_parallel_size
        return range(first, first + self.tensor_parallel_size)


def replica_options(options: EngineOptions) -> list[EngineOptions]:
    """The options of each of the replicas that these ask for."""
    return [structs.replace(options, replica=number) for number in range(options.replicas)]


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
        awq = checkpoint.quantization is not None and checkpoint.quantization.method == "awq"
        dtype = "float32" if on_cpu and not awq else "bfloat16"
    _check_formats(options, checkpoint, dtype, on_cpu=on_cpu)
    _check_shards(options, checkpoint)
    block_size = options.block_size or (16 if on_cpu else 64)
    cache_gib = options.kv_cache_gib
    if cache_gib is None and on_cpu:
        cache_gib = CPU_CACHE_GIB
    if cache_gib is not None:
        number_bytes = 1 if options.kv_cache_dtype == "fp8" else 4 if dtype == "float32" else 2
        _check_cache(options, cache_gib, block_size, checkpoint.config, longest, number_bytes)
    return {
        "model": str(checkpoint.directory),
        "skip_tokenizer_init": True,
        "enable_prompt_embeds": True,
        "generation_config": "vllm",
        "load_format": "dummy" if options.dummy_weights else "safetensors",
        "dtype": dtype,
        "quantization": _ONLINE.get(options.quantization or "", options.quantization),
        "kv_cache_dtype": options.kv_cache_dtype,
        "tensor_parallel_size": options.tensor_parallel_size,
        "device_ids": None if on_cpu or options.replicas == 1 else list(options.devices),
        "max_model_len": longest,
        "block_size": block_size,
        "kv_cache_memory_bytes": None if cache_gib is None else int(cache_gib * (1 << 30)),
        "gpu_memory_utilization": _MEMORY
        if options.memory_utilization is None
        else options.memory_utilization,
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
        "distributed_executor_backend": executor_class(options.tensor_parallel_size),
        "enforce_eager": True,  # vLLM would capture what runs by its own scheduler; sessions have graphs of their own
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }


def executor_class(tensor_parallel_size: int) -> type:
    """What runs the workers; a class and not its name, so that it is imported wherever vLLM's arguments are read."""
    from mtgr.serving import executor

    return executor.OwnedExecutor if tensor_parallel_size == 1 else executor.OwnedShardedExecutor


def _check_formats(options: EngineOptions, checkpoint: Checkpoint, dtype: str, *, on_cpu: bool) -> None:
    """InputError if the number formats do not go together, with the model or with the device."""
    config, own, online = checkpoint.config, checkpoint.quantization, options.quantization
    if online is not None:
        if own is not None:
            raise InputError(
                f"quantization is {online!r}, where none is wanted: {checkpoint.directory} is quantised by "
                f"{own.method} already"
            )
        if on_cpu and online != _CPU_ONLINE:
            raise InputError(f"quantization is {online!r}, where {_CPU_ONLINE!r} or a GPU is wanted")
        if dtype == "float32":
            raise InputError(
                f"dtype is 'float32', where 'bfloat16' or 'float16' is wanted with quantization {online!r}"
            )
    if own is not None:
        own.check_dtype(dtype)
    if options.kv_cache_dtype == "fp8" and on_cpu:
        raise InputError("kv_cache_dtype is 'fp8', where a GPU is wanted; 'auto' is right on a CPU")
    if dtype == "float16" and options.scheduling == "vllm" and (config.continuous or config.user_numbers):
        raise InputError(
            "dtype is 'float16', where 'bfloat16' or 'float32' is wanted with scheduling 'vllm': its prompts hold "
            "numbers of events as they are, and those above 65504 do not fit"
        )


def _check_shards(options: EngineOptions, checkpoint: Checkpoint) -> None:
    """InputError if the model cannot be shared by so many devices."""
    ranks, config = options.tensor_parallel_size, checkpoint.config
    for name, size in (("n_heads", config.n_heads), ("d_ff", config.d_ff)):
        if size % ranks:
            raise InputError(f"tensor_parallel_size is {ranks}, where a divisor of {name} {size} is wanted")
    if checkpoint.quantization is not None:
        checkpoint.quantization.check_shards(config, ranks)


def _check_cache(
    options: EngineOptions,
    cache_gib: float,
    block_size: int,
    config: ModelConfig,
    longest: int,
    number_bytes: int,
) -> None:
    """InputError if the KV cache cannot hold one longest sequence and the block that vLLM keeps to itself."""
    heads = config.n_heads // options.tensor_parallel_size
    token = config.n_layers * heads * (head_size(config) + config.d_v) * number_bytes
    least = (-(-longest // block_size) + 1) * block_size * token / (1 << 30)
    if cache_gib < least:
        raise InputError(
            f"kv_cache_gib is {cache_gib:g}, where {math.ceil(1e6 * least) / 1e6:g} or more is wanted: "
            f"so much does one sequence of {longest} tokens take"
        )
