"""vLLM's executor for one device, run within the engine process and tied to the process that started it."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import sys
import threading
from typing import Final

from vllm.v1.executor.uniproc_executor import UniProcExecutor

_ENGINE_PROCESS: Final = "EngineCore"  # how vLLM names it


_exit_code = 1


class OwnedExecutor(UniProcExecutor):  # type: ignore[misc]
    """Runs the worker inside the engine process.

    On the CPU vLLM would put the worker in a third process, at the cost of a second start-up and of a hop in
    each step. Named by its path, this class is taken as it is.
    """

    def shutdown(self) -> None:
        """Release the worker; what is left for the process is to exit."""
        global _exit_code
        super().shutdown()
        _exit_code = 0


def _end_well() -> None:
    """Let an engine process end with the one that started it, however that one ends, and end at once.

    vLLM's own outlives a parent that is killed, and takes seconds to take its interpreter apart.
    """
    parent = multiprocessing.parent_process()
    if parent is None or not multiprocessing.current_process().name.startswith(_ENGINE_PROCESS):
        return

    def wait() -> None:
        parent.join()
        os._exit(1)  # nothing is left to be saved, and nobody to say goodbye to

    def leave() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_exit_code)

    threading.Thread(target=wait, name="parent-watch", daemon=True).start()
    atexit.register(leave)


# An engine process imports this module while it reads its arguments: nothing of ours runs earlier.
_end_well()
