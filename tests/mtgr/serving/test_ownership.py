"""An engine process ends with the process that started it, and with nothing else."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

# A process that starts an engine's, as vLLM names it, and says both are up; the engine's then waits for ever.
OWNER = """
import multiprocessing, os, sys, time

def engine(up):
    from mtgr.serving import ownership
    assert ownership.in_engine_process()
    ownership.ignore_interrupts()
    ownership.belong_to_parent()
    up.send(os.getpid())
    time.sleep(600)

if __name__ == "__main__":
    from mtgr.serving import ownership
    assert not ownership.in_engine_process()
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=engine, args=(there,), name="EngineCore_DP0")
    process.start()
    print(here.recv(), flush=True)
    process.join()
"""


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    script = tmp_path / "owner.py"
    script.write_text(textwrap.dedent(OWNER))
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.communicate()


def ended(watch: int, within: float) -> bool:
    """Whether the process that a pidfd stands for ends in time."""
    return bool(select.select([watch], [], [], within)[0])


def test_an_engine_process_ends_with_its_killed_owner_and_not_by_ctrl_c(owner: subprocess.Popen[str]) -> None:
    """Nobody is left to stop it when its owner is killed; Ctrl-C is its owner's to understand."""
    assert owner.stdout is not None
    engine = int(owner.stdout.readline())
    watch = os.pidfd_open(engine)
    try:
        os.kill(engine, signal.SIGINT)
        assert not ended(watch, 0.5)
        owner.kill()
        assert ended(watch, 20)
    finally:
        os.close(watch)
