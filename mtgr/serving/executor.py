"""vLLM's executor for one device, run within the engine process."""

from __future__ import annotations

from vllm.v1.executor.uniproc_executor import UniProcExecutor

from mtgr.serving.ownership import belong_to_parent, ignore_interrupts, in_engine_process, leave_quickly
from mtgr.serving.plugin import register
from mtgr.serving.quiet import quieten


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


# An engine process imports this module while it reads its arguments: nothing of ours runs earlier.
if in_engine_process():
    quieten()
    ignore_interrupts()
    belong_to_parent()
