"""vLLM's executors as an engine has them: the worker within its process, or one process for each device."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

from vllm.v1.executor.multiproc_executor import MultiprocExecutor
from vllm.v1.executor.uniproc_executor import UniProcExecutor

from mtgr.serving.ownership import (
    belong_to_parent,
    ignore_interrupts,
    in_engine_process,
    in_worker_process,
    interrupts_blocked,
    leave_quickly,
)
from mtgr.serving.plugin import register
from mtgr.serving.quiet import quieten

_SHARED_MEMORY: Final = Path("/dev/shm")


class OwnedExecutor(UniProcExecutor):  # type: ignore[misc]
    """Runs the worker inside the engine process.

    On the CPU vLLM would put the worker in a third process, at the cost of a second start-up and of a hop in
    each step. Named by its path, this class is taken as it is.
    """

    def _init_executor(self) -> None:
        register()  # whatever plugins the user lets vLLM load
        if in_engine_process():
            ignore_interrupts()  # vLLM has just said otherwise
        super()._init_executor()

    def shutdown(self) -> None:
        """Release the worker; an engine process then exits at once, where its interpreter would take seconds."""
        super().shutdown()
        if in_engine_process():
            leave_quickly()


class OwnedShardedExecutor(MultiprocExecutor):  # type: ignore[misc]
    """Runs a worker for each tensor-parallel rank, in processes that end with the engine process however it ends."""

    def _init_executor(self) -> None:
        register()
        if in_engine_process():
            ignore_interrupts()
        with interrupts_blocked():  # inherited by the workers, who would end at Ctrl-C
            super()._init_executor()
        self.collective_rpc(_unname_shared_memory)

    def shutdown(self) -> None:
        """End the workers at once: they have nothing to save, and their interpreters would take seconds."""
        if not getattr(self, "shutting_down", False):
            self.shutting_down = True  # to vLLM's watch over the workers: their end is meant
            for worker in getattr(self, "workers", None) or []:
                worker.proc.kill()
                worker.proc.join()
        super().shutdown()
        if in_engine_process():
            leave_quickly()


def _unname_shared_memory(worker: Any) -> None:
    """Unlink what ranks on a CPU share, once all have it: so it goes with the last of them, however they end."""
    if identity := os.environ.get("VLLM_DIST_IDENT"):
        for path in _SHARED_MEMORY.glob(f"*{identity}*"):
            path.unlink(missing_ok=True)


# An engine process imports this module while it reads its arguments, and so does a worker: nothing of ours is earlier.
if in_engine_process() or in_worker_process():
    quieten()
    ignore_interrupts()
    belong_to_parent()
if in_worker_process():
    register()
