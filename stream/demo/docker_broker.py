"""A Kafka broker in a container, by the `docker` command."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from stream.demo.broker import (
    IMAGE,
    KafkaUnavailable,
    broker_properties,
    container_environment,
    free_port,
    wait_until_started,
)
from stream.demo.processes import Child

_ANSWER_SECONDS: Final = 15
_PULL_SECONDS: Final = 300
_PORT: Final = 9092


def require_image(say: Callable[[str], None]) -> None:
    """Return if a Docker engine answers and has the image, or can pull it; raises KafkaUnavailable."""
    if shutil.which("docker") is None:
        raise KafkaUnavailable("Docker is not installed")
    if _docker("version", "--format", "{{.Server.Version}}"):
        raise KafkaUnavailable("no Docker engine answers")
    if _docker("image", "inspect", IMAGE):
        say(f"pulling {IMAGE}")
        if reason := _docker("pull", "--quiet", IMAGE, timeout=_PULL_SECONDS):
            raise KafkaUnavailable(f"Docker has no image {IMAGE} and cannot pull it ({reason})")


@contextmanager
def docker_broker(directory: Path) -> Iterator[str]:
    """Run a broker in a container and give its bootstrap servers; container and data go at the end.

    The log is written under `directory`. Raises KafkaUnavailable if the container is not reachable from here.
    """
    port = free_port()
    name = f"mtgr-stream-kafka-{os.getpid()}-{port}"
    properties = broker_properties(
        listen=f"0.0.0.0:{_PORT}", controller="localhost:9093", advertised=f"127.0.0.1:{port}"
    )
    variables = [f"--env={key}={value}" for key, value in container_environment(properties).items()]
    # the command stays in the foreground and hands its SIGTERM to the broker: both end with this process
    command = [
        "docker",
        "run",
        "--rm",
        "--pull=never",
        f"--name={name}",
        f"--publish=127.0.0.1:{port}:{_PORT}",
    ]
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with Child([*command, *variables, IMAGE], directory / "kafka.log", name="Kafka") as broker:
            wait_until_started(broker)
            _require_reachable(port)
            yield f"127.0.0.1:{port}"
    finally:
        _docker("rm", "--force", name)


def _docker(*arguments: str, timeout: float = _ANSWER_SECONDS) -> str:
    """Run the command; returns why it failed, nothing if it did not."""
    try:
        done = subprocess.run(
            ["docker", *arguments],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {timeout:g} s"
    return (done.stderr.strip().splitlines() or ["no reason given"])[-1] if done.returncode else ""


def _require_reachable(port: int) -> None:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError as error:
        raise KafkaUnavailable(f"the container's port {port} is not reachable from here ({error})") from None
