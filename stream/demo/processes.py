"""Programs that run beside this one and never outlive it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_POLL_SECONDS: Final = 0.05
_libc: Final = ctypes.CDLL(None) if sys.platform == "linux" else None


class ChildFailed(RuntimeError):
    """A program ended, or was not ready in time; the message carries the end of its log."""


class Child:
    """A program in a session of its own, its output in a log file.

    It does not see the terminal's Ctrl-C, so its parent decides when it stops. On Linux the kernel sends it
    `death_signal` when the parent dies in any way; start it from a thread that lives as long as it should.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        *,
        name: str,
        environment: Mapping[str, str] | None = None,
        death_signal: signal.Signals = signal.SIGTERM,
    ) -> None:
        self.name = name
        self.log = log
        self._log_start = log.stat().st_size if log.exists() else 0
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
                preexec_fn=_dies_with_parent(death_signal),
            )

    @property
    def pid(self) -> int:
        """The program's process id, also the id of its process group."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """The exit status, negative for a signal, or None while the program runs."""
        return self._process.poll()

    def output(self) -> str:
        """What the program has written since this start."""
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def wait_until(self, ready: Callable[[], bool], timeout: float) -> None:
        """Return as soon as `ready` says so; raise ChildFailed if the program ends first or time runs out."""
        deadline = time.monotonic() + timeout
        while not ready():
            if self.exit_code is not None:
                raise self.failure(f"ended with exit code {self.exit_code}")
            if time.monotonic() > deadline:
                raise self.failure(f"is not ready after {timeout:g} s")
            time.sleep(_POLL_SECONDS)

    def send(self, sent: signal.Signals) -> None:
        """Send a signal to the program alone; nothing happens if it has ended."""
        self._process.send_signal(sent)

    def stop(self, timeout: float) -> int:
        """SIGTERM, and SIGKILL for what is left of its group after the timeout; returns the exit status."""
        if self.exit_code is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout)
        return self.kill()

    def kill(self) -> int:
        """SIGKILL to the program and every process of its group; returns the exit status."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        return self._process.wait()

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(timeout=30)

    def failure(self, reason: str, lines: int = 30) -> ChildFailed:
        """An error that names the program, what it did, and the end of its log."""
        tail = self.output().splitlines()[-lines:]
        shown = f"the end of {self.log}:\n" + "\n".join(tail) if tail else f"{self.log} is empty"
        return ChildFailed(f"{self.name} {reason}; {shown}")


def _dies_with_parent(death_signal: signal.Signals) -> Callable[[], None] | None:
    if _libc is None:
        return None
    libc, parent = _libc, os.getpid()

    def in_child() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, death_signal)
        if os.getppid() != parent:  # it died before the kernel was asked
            os._exit(1)

    return in_child
