"""Promises of the image: confined as docker/compose.yaml says, the daemon does all its work and ends well."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen
from uuid import uuid4

import pytest
from checkpoints import tiny_checkpoint
from composed import COMPOSE, ROOT, Composed, docker, output
from events import EventMaker, names

from schemas.codecs import JSON, encode_event

READY_SECONDS = 240  # a first start of an engine from a cold disk, on two shared cores


def until(holds: Callable[[], bool], what: str, seconds: float) -> None:
    """Return once it holds; fails after so many seconds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"{what} has not come in {seconds:g} s"
        time.sleep(0.5)


@pytest.fixture
def composed(tmp_path: Path) -> Iterator[Composed]:
    """The compose file's services beside a checkpoint that another user has made."""
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint")
    composed = Composed(f"mtgr-stream-test-{uuid4().hex[:8]}", {"CHECKPOINT": str(checkpoint)})
    try:
        yield composed
    finally:
        composed.remove()


@pytest.fixture
def kafka(composed: Composed) -> None:
    """The compose file's Kafka, healthy by its own check, with the topics that its `topics` service makes."""
    container = composed.start("kafka")
    check = COMPOSE["services"]["kafka"]["healthcheck"]["test"][1:]

    def healthy() -> bool:
        return not subprocess.run(
            ["docker", "exec", container, *check], capture_output=True, check=False
        ).returncode

    until(healthy, "Kafka", 60)
    composed.run("topics", *COMPOSE["services"]["topics"]["command"])


def inspected(container: str) -> dict[str, Any]:
    """What the engine knows of a container's state."""
    state: dict[str, Any] = json.loads(docker("inspect", "--format", "{{json .State}}", container))
    return state


def logged(container: str, event: str) -> list[dict[str, Any]]:
    """The daemon's log events of a name."""
    events = [json.loads(line) for line in output(container) if line.startswith("{")]
    return [one for one in events if one["event"] == event]


def wait_until_ready(container: str) -> None:
    """Return when the daemon says that it is ready, to this machine."""

    def ready() -> bool:
        state = inspected(container)
        assert state["Running"], "\n".join(output(container)[-20:])
        port = docker("port", container, "8080/tcp").split()[0].rpartition(":")[2]
        try:
            return bool(urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5).status == 200)
        except (URLError, OSError):
            return False

    until(ready, "a ready daemon", READY_SECONDS)


def stop(container: str) -> None:
    """SIGTERM, with the patience that the compose file has; the daemon must drain and exit with 0."""
    patience = COMPOSE["services"]["daemon"]["stop_grace_period"].removesuffix("s")
    docker("stop", f"--time={patience}", container, seconds=90)
    state = inspected(container)
    assert (state["ExitCode"], state["OOMKilled"]) == (0, False), "\n".join(output(container)[-20:])


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("kafka")
def test_the_daemon_works_confined_and_keeps_its_state_on_the_volume(composed: Composed) -> None:
    """As nobody, on a read-only root, without a capability: ready, lists, a clean end, and state after a restart."""
    daemon = composed.start("daemon")
    wait_until_ready(daemon)

    status = dict(
        line.split(":\t")
        for line in docker("exec", daemon, "cat", "/proc/1/status").splitlines()
        if ":\t" in line
    )
    assert status["Uid"].split() == ["10001"] * 4
    assert {int(status[kind], 16) for kind in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb")} == {0}
    assert status["NoNewPrivs"] == "1"
    for path in ("/", "/opt/mtgr-stream", "/checkpoint"):
        with pytest.raises(AssertionError, match="Read-only file system"):
            docker("exec", daemon, "touch", f"{path}/planted")

    users = names("u", 5)
    events = EventMaker(1, users).each()
    lines = "".join(f"{encode_event(event, JSON).decode()}\n" for event in events)
    composed.run("topics", "produce", "-", given=lines)
    lists = composed.run("topics", "tail", "--from=beginning", f"--limit={len(users)}", "--json").splitlines()
    assert {json.loads(line)["user_id"] for line in lists} == set(users)
    until(lambda: inspected(daemon)["Health"]["Status"] == "healthy", "a healthy container", 60)
    stop(daemon)
    assert logged(daemon, "drained")

    docker("start", daemon)
    wait_until_ready(daemon)
    restored = logged(daemon, "partition_restored")[6:]
    assert sum(one["users"] for one in restored) == len(users)
    assert sum(one["changelog_records"] for one in restored) == 0  # the files on the volume were enough
    stop(daemon)


def test_compose_accepts_the_file(tmp_path: Path) -> None:
    """Compose itself, where this engine's command has it, finds nothing wrong with what is shipped."""
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("the docker command has no compose plugin")
    (tmp_path / "variables").write_text(f"CHECKPOINT={tmp_path}\n")
    docker(
        *("compose", "--env-file", str(tmp_path / "variables")),
        *("--file", str(ROOT / "docker/compose.yaml"), "config", "--quiet"),
    )
