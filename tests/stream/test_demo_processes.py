"""Programs beside the demo: watched, stopped, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stream.demo.processes import Child, ChildFailed

# starts a sleeping child of its own, says its pid, and ignores SIGTERM if asked to
_PROGRAM = """
import signal, subprocess, sys, time
if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
time.sleep(600)
"""


def _until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def _grandchild(child: Child) -> int:
    child.wait_until(lambda: "child" in child.output(), 20)
    return int(child.output().split()[1])


def test_ready_program_is_not_waited_for_longer(tmp_path: Path) -> None:
    """wait_until returns as soon as the condition holds, and the output is in the log."""
    with Child([sys.executable, "-c", _PROGRAM], tmp_path / "log", name="program") as child:
        assert _is_running(_grandchild(child))
        assert child.exit_code is None
    assert child.exit_code == -signal.SIGTERM


@pytest.mark.parametrize("manner", ["obedient", "stubborn"])
def test_stop_leaves_no_process_of_the_group(tmp_path: Path, manner: str) -> None:
    """A program that ends at SIGTERM and one that does not are both gone, with what they have started."""
    child = Child([sys.executable, "-c", _PROGRAM, manner], tmp_path / "log", name="program")
    grandchild = _grandchild(child)
    child.stop(timeout=0.5)
    _until(lambda: not _is_running(grandchild), "the end of the program's child")
    assert not _is_running(child.pid)


def test_program_that_ends_early_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    """The error names the program, its exit code and the last it said."""
    child = Child([sys.executable, "-c", "print('no license'); exit(3)"], tmp_path / "log", name="Kafka")
    with pytest.raises(ChildFailed, match=r"(?s)Kafka ended with exit code 3.*no license"):
        child.wait_until(lambda: False, 20)


def test_program_that_is_not_ready_in_time_is_reported(tmp_path: Path) -> None:
    """The error says how long it was waited for."""
    with (
        Child([sys.executable, "-c", _PROGRAM], tmp_path / "log", name="Kafka") as child,
        pytest.raises(ChildFailed, match=r"Kafka is not ready after 0.2 s"),
    ):
        child.wait_until(lambda: False, 0.2)


def test_output_is_that_of_this_start_alone(tmp_path: Path) -> None:
    """A log goes on over restarts, and only what the last start wrote is looked at."""
    log = tmp_path / "log"
    for text in ("first", "second"):
        child = Child([sys.executable, "-c", f"print('{text}')"], log, name="program")
        _until(lambda child=child: child.exit_code is not None, "the program")
    assert child.output() == "second\n"
    assert log.read_text() == "first\nsecond\n"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")
def test_program_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    """SIGKILL to the parent takes the program down too."""
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from pathlib import Path; from stream.demo.processes import Child\n"
            "child = Child(['sleep', '600'], Path(sys.argv[1]), name='program')\n"
            "print(child.pid, flush=True); time.sleep(600)",
            str(tmp_path / "log"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert _is_running(pid)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    _until(lambda: not _is_running(pid), "the program's end")
