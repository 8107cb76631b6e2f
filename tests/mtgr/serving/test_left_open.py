"""A program that does not close its engines ends all the same, and they with it."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mtgr.checkpoint import Checkpoint

pytestmark = pytest.mark.vllm

# Asks both faces of the library for a list, closes neither and fails; engines are named as they come up.
PROGRAM = """
import asyncio, multiprocessing, sys

from mtgr.pipeline import UserBehaviorInferencePipeline
from mtgr.serving.recommender import create_vllm_engine

BEHAVIORS = [{"video_id": "v1", "watch_duration": 25.0, "watch_percentage": 0.83}]

async def ask(pipeline, engine):
    await asyncio.gather(
        pipeline.infer_recommendations_async("u", "s", BEHAVIORS, 5),
        engine.generate_recommendations("u", "s", BEHAVIORS, 5),
    )

if __name__ == "__main__":
    pipeline = UserBehaviorInferencePipeline(sys.argv[1], kv_cache_gib=0.1)
    engine = create_vllm_engine(sys.argv[1], kv_cache_gib=0.1)
    asyncio.run(ask(pipeline, engine))
    print("engines", *(child.pid for child in multiprocessing.active_children()), flush=True)
    raise ValueError("of the program")
"""


def test_a_program_that_closes_nothing_ends_and_takes_its_engines_with_it(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Also where it is ended by an exception, which it still tells."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    command = [sys.executable, str(script), str(checkpoint.directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout is not None
            line = next(line for line in program.stdout if line.startswith("engines "))
            engines = [os.pidfd_open(int(pid)) for pid in line.split()[1:]]
            began = time.monotonic()
            _, errors = program.communicate(timeout=15)
        finally:
            program.kill()
    assert program.returncode == 1
    assert "ValueError: of the program" in errors
    assert len(engines) == 2
    for engine in engines:
        assert select.select([engine], [], [], max(0.0, began + 15 - time.monotonic()))[0]
        os.close(engine)
