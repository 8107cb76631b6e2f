"""`mtgr-stream serve` as operators run it: it comes up, survives its engine, and goes down in good order."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from events import EventMaker
from records import eventually
from serving import assert_same_lists, list_request, random_checkpoint

from mtgr.errors import EngineFailed
from mtgr.reference import ReferenceRecommender
from mtgr.serving.client import EngineClient

START_SECONDS = 200.0


class Served:
    """A server process and its log."""

    def __init__(self, checkpoint: Path, log: Path) -> None:
        self._log = log
        command = [sys.executable, "-m", "stream", "serve", "--checkpoint", str(checkpoint), "--port", "0"]
        options = ["--kv-cache-gib", "0.1", "--log-format", "json"]
        with log.open("wb") as output:
            self.process = subprocess.Popen(command + options, stdout=output, stderr=output)

    def logged(self, event: str) -> list[dict[str, Any]]:
        """What it has logged of one kind so far."""
        lines = [line for line in self._log.read_text().splitlines() if line.startswith("{")]
        return [one for one in map(json.loads, lines) if one["event"] == event]

    async def until(self, event: str, times: int = 1) -> dict[str, Any]:
        """Return the event once it was logged so often; fail with the log if the process ends before."""

        def met() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(self._log.read_text())
            return len(self.logged(event)) >= times

        await eventually(met, event, within=START_SECONDS)
        return self.logged(event)[times - 1]


def exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return random_checkpoint(tmp_path / "checkpoint")


@pytest.fixture
def served(checkpoint: Path, tmp_path: Path) -> Iterator[Served]:
    served = Served(checkpoint, tmp_path / "log")
    yield served
    served.process.kill()
    served.process.wait()


@pytest.mark.vllm
async def test_a_server_serves_restarts_its_engine_and_stops_on_sigterm(
    checkpoint: Path, served: Served
) -> None:
    """Lists are the reference's before and after its engine was killed; SIGTERM leaves no process behind."""
    ready = await served.until("engine_server_ready")
    client = EngineClient(f"http://127.0.0.1:{ready['port']}", start_timeout_seconds=START_SECONDS)
    requests = [list_request(EventMaker(seed, ["u"]).take(20 * seed)) for seed in (1, 2, 3)]
    wanted = ReferenceRecommender(checkpoint).recommend(requests)
    try:
        await client.start()
        assert_same_lists(await client.recommend(requests), wanted)
        (engine,) = (await served.until("engine_process_started"))["pids"]
        os.kill(engine, signal.SIGKILL)

        async def fails() -> bool:
            try:
                await client.recommend(requests)
            except EngineFailed:
                return True
            return False

        await eventually(fails, "a call that fails")
        (engine,) = (await served.until("engine_process_started", times=2))["pids"]
        await client.start()
        assert_same_lists(await client.recommend(requests), wanted)
    finally:
        await client.close()
    served.process.send_signal(signal.SIGTERM)
    await eventually(lambda: served.process.poll() is not None, "the end of the server")
    assert served.process.returncode == 0
    assert not exists(engine)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--checkpoint", "nowhere"], "nowhere: no such checkpoint directory"),
        (["--checkpoint", ".", "--port", "70000"], "70000 is not in the range"),
        (["--checkpoint", ".", "--dtype", "int8"], "'int8' is not one of 'auto', 'float32', 'bfloat16'"),
        ([], "Missing option '--checkpoint'"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_code_2(
    options: list[str], message: str, tmp_path: Path
) -> None:
    """Before vLLM is so much as imported."""
    done = subprocess.run(
        [sys.executable, "-m", "stream", "serve", *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
