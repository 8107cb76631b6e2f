"""vLLM imported into this process, with all that it reads from the environment set before."""

from __future__ import annotations

import os
import re
from typing import Final

from mtgr.checkpoint import ARCHITECTURE
from mtgr.errors import InputError
from mtgr.serving.quiet import quieten

_ENVIRONMENT: Final = {
    "VLLM_NO_USAGE_STATS": "1",  # vLLM tells its makers nothing
    "VLLM_CONFIGURE_LOGGING": "0",  # it logs through our logging
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # the other one takes neither prompt embeddings nor our mask
}
_CORES: Final = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")
# the compiler would take 2 to 20 s at the first list, for one small function of the sampler
_CPU_ENVIRONMENT: Final = {"TORCH_COMPILE_DISABLE": "1"}


def prepare_vllm(workers: int = 1) -> None:
    """Import vLLM, which takes seconds the first time, and set all it reads from the environment.

    `workers` run at once, of one engine or of several that share the machine. What the user has set stays. Raises
    InputError if that cannot be.
    """
    quieten()
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from vllm import ModelRegistry
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        for name, value in _CPU_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        _set_threads(workers)
    from mtgr.serving.model import MTGRForRecommendation
    from mtgr.serving.plugin import register

    register()  # whatever plugins the user lets vLLM load
    # of a model it knows by name only, vLLM would learn what it can do in a process started for that
    ModelRegistry.register_model(ARCHITECTURE, MTGRForRecommendation)


def _set_threads(workers: int) -> None:
    """Choose the threads of the engine processes to come.

    One core is left to the daemon: with a thread on every core, each torch call waits for the thread that
    has to share its core, and a busy machine serves several times slower.
    """
    from vllm.utils.torch_utils import available_cpu_count

    cores = os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "auto" if workers == 1 else "nobind")
    if cores in ("auto", "nobind"):
        if workers > 1:
            # by itself vLLM would want a NUMA node for each worker
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", cores)
        threads = max(1, (available_cpu_count() - 1) // workers)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
        return
    parts = cores.split("|")
    if len(parts) > 1 and len(parts) == workers and all(_CORES.fullmatch(part) for part in parts):
        return  # vLLM binds the workers of one engine by itself
    # it binds the workers it puts in processes of their own; within the engine's, OpenMP does
    if not _CORES.fullmatch(cores):
        raise InputError(f"VLLM_CPU_OMP_THREADS_BIND is {cores!r}, where cores are wanted, as in '0-3,8'")
    ranges = [part.partition("-")[::2] for part in cores.split(",")]
    threads = sum(int(last or first) - int(first) + 1 for first, last in ranges)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, threads // workers)))
    os.environ.setdefault("GOMP_CPU_AFFINITY", cores)
