"""What is wrong before the daemon can work: one line that names it, exit code 2, no traceback."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import tiny_checkpoint
from daemons import Deployment
from generators import Script
from records import create_topic

_Break = Callable[[Path], dict[str, object]]


def _no_checkpoint(directory: Path) -> dict[str, object]:
    return {"model.checkpoint": str(directory / "nothing")}


def _damaged_checkpoint(directory: Path) -> dict[str, object]:
    weights = tiny_checkpoint(directory / "damaged") / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-100] ^= 0xFF
    weights.write_bytes(content)
    return {"model.checkpoint": str(weights.parent)}


def _wrong_partitions(directory: Path) -> dict[str, object]:
    return {"topics.partitions": 3}


def _unknown_key(directory: Path) -> dict[str, object]:
    return {"trigger.max_wait": 5}


@pytest.mark.parametrize(
    ("make_wrong", "named"),
    [
        (_no_checkpoint, ["nothing", "no such checkpoint"]),
        (_damaged_checkpoint, ["model.safetensors", "digest"]),
        (_wrong_partitions, ["has 2 partitions", "topics.partitions"]),
        (_unknown_key, ["max_wait", "trigger.max_wait_ms"]),
    ],
)
async def test_wrong_input_is_named_in_one_line(
    deployment: Deployment, tmp_path: Path, make_wrong: _Break, named: list[str]
) -> None:
    """Each wrong setting, checkpoint or topic ends the start with exit code 2 and one line that says what is wrong."""
    running = deployment.start(changes=make_wrong(tmp_path))
    assert await running.ended(within=60) == 2
    (line,) = running.plain_output()
    assert line.startswith("mtgr-stream: ")
    for part in named:
        assert part in line


async def test_port_in_use_is_named_in_one_line(deployment: Deployment, engine: Script) -> None:
    """A port that another program listens on is refused by name."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        running = deployment.start(changes={"http.port": port})
        assert await running.ended() == 2
    (line,) = running.plain_output()
    assert f"http.port = {port}: already in use" in line


async def test_state_directory_that_is_none_is_named_in_one_line(
    deployment: Deployment, engine: Script, tmp_path: Path
) -> None:
    """A file where the state directory should be ends the start."""
    file = tmp_path / "file"
    file.write_text("not a directory")
    running = deployment.start(changes={"state.directory": str(file)})
    assert await running.ended() == 2
    (line,) = running.plain_output()
    assert "state.directory" in line
    assert str(file) in line


async def test_changelog_that_would_lose_state_is_refused(deployment: Deployment, engine: Script) -> None:
    """A changelog that is not compacted would forget users who are silent for a while: the daemon does not start."""
    name = f"{deployment.names.changelog}-other"
    await create_topic(deployment.servers, name, partitions=2)
    running = deployment.start(changes={"topics.changelog": name})
    assert await running.ended() == 2
    (line,) = running.plain_output()
    assert "compact" in line
    assert name in line
