"""Leaves out of the log what vLLM warns of and what is meant to be so."""

from __future__ import annotations

import logging
import warnings
from typing import Final

# logger -> how its harmless messages begin. Errors are never left out, nor is any other warning.
_HARMLESS: Final = {
    # no tokenizer: prompts are rows of features
    "vllm.renderers.base": ("Chat template warmup failed", "Using None for EOS token id"),
    # eager on the CPU, by our own settings
    "vllm.config.vllm": (
        "Enforce eager set",
        "TORCH_COMPILE_DISABLE is set",
        "Inductor compilation was disabled",
        "Model Runner V2 requires Triton",
    ),
    "vllm.triton_utils.importing": ("Triton is installed, but doesn't include CPU backend",),
    # about attention kernels that are not used here, and about layers that a model of ours has not
    "vllm.platforms.cpu": (
        "Triton is not installed",
        "CPU backend prefers block_size",
        "Reset SSM cache type",
    ),
    # vLLM calls its own blocked function; the libraries are a matter of taste at these sizes
    "vllm.v1.worker.cpu_worker": ("%s is not found in LD_PRELOAD", "CPU backend doesn't allow to use"),
    "vllm.engine.arg_utils": ("The global random seed is set",),
    # said when the user has set the number of threads
    "vllm.utils.torch_utils": ("OMP_NUM_THREADS=%s is set",),
}


class _Harmless(logging.Filter):
    def __init__(self, beginnings: tuple[str, ...]) -> None:
        super().__init__()
        self.beginnings = beginnings

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno > logging.WARNING or not str(record.msg).startswith(self.beginnings)


def quieten() -> None:
    """Let vLLM's loggers pass warnings and errors on, but for those known to be harmless here."""
    root = logging.getLogger("vllm")
    if root.level == logging.NOTSET:
        root.setLevel(logging.WARNING)
    for name, beginnings in _HARMLESS.items():
        logger = logging.getLogger(name)
        if not any(isinstance(known, _Harmless) for known in logger.filters):
            logger.addFilter(_Harmless(beginnings))
    warnings.filterwarnings(
        "ignore", message="`torch.distributed.reduce_op` is deprecated", category=FutureWarning
    )
