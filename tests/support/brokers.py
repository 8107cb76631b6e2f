"""Kafka brokers for tests: containers where Docker has the image, the machine's own Java elsewhere."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from stream.demo.broker import (
    IMAGE,
    KAFKA_VERSION,
    START_SECONDS,
    STARTED,
    KafkaUnavailable,
    broker_properties,
    container_environment,
    free_port,
)
from stream.demo.docker_broker import require_image
from stream.demo.maven_broker import MavenBroker, find_java, kafka_jars

# nothing here outlives its test, and the image that would watch for that cannot be had everywhere
os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")

from testcontainers.core.container import DockerContainer

_PORT = 9092
_START_SCRIPT = "/tmp/testcontainers_start.sh"


class Broker(Protocol):
    """A broker that a test can take down and bring back; it keeps its address and its data."""

    @property
    def bootstrap_servers(self) -> str:
        """Where clients reach the broker, the same over restarts."""

    def kill(self) -> None:
        """SIGKILL: no clean shutdown."""

    def shut_down(self) -> None:
        """SIGTERM, and return once the broker is gone."""

    def restart(self) -> None:
        """Start the same broker again after kill() or shut_down(); return once it serves."""

    def pause(self) -> None:
        """Freeze the broker: its connections stay open and nothing answers."""

    def unpause(self) -> None:
        """Let a paused broker go on."""


class KafkaContainer(DockerContainer):  # type: ignore[misc]
    """A broker in a container of the apache/kafka image.

    The host that clients reach it by is known only once the container runs, so the container first waits for
    a start script, and start() puts one there that sets the advertised listeners.
    """

    def __init__(self) -> None:
        super().__init__(IMAGE)
        self._host_port = free_port()  # Docker would pick another one at every start
        self._starts = 0
        self.with_bind_ports(_PORT, self._host_port)
        self.with_command(
            ["sh", "-c", f"while [ ! -s {_START_SCRIPT} ]; do sleep 0.1; done; . {_START_SCRIPT}"]
        )
        self.with_envs(
            **container_environment(broker_properties(listen=f"0.0.0.0:{_PORT}", controller="localhost:9093"))
        )

    @property
    def bootstrap_servers(self) -> str:
        """Where clients reach the broker, the same over restarts."""
        return f"{self.get_container_host_ip()}:{self._host_port}"

    def start(self) -> KafkaContainer:
        """Create the container and return once the broker serves."""
        super().start()
        listeners = f"PLAINTEXT://{self.bootstrap_servers}"
        script = f"export KAFKA_ADVERTISED_LISTENERS={listeners}\nexec /etc/kafka/docker/run\n"
        self.copy_into_container(script.encode(), _START_SCRIPT)
        self._wait_until_started()
        return self

    def kill(self) -> None:
        """SIGKILL: no clean shutdown; the data stays in the container."""
        self.get_wrapped_container().kill()

    def shut_down(self) -> None:
        """SIGTERM, then SIGKILL after 30 s; the data stays in the container."""
        self.get_wrapped_container().stop(timeout=30)

    def restart(self) -> None:
        """Start the same broker again, with its data, after kill() or shut_down()."""
        self.get_wrapped_container().start()
        self._wait_until_started()

    def pause(self) -> None:
        """Freeze the broker: its connections stay open and nothing answers."""
        self.get_wrapped_container().pause()

    def unpause(self) -> None:
        """Let a paused broker go on."""
        self.get_wrapped_container().unpause()

    def _wait_until_started(self) -> None:
        container = self.get_wrapped_container()
        self._starts += 1  # the log goes on over restarts
        deadline = time.monotonic() + START_SECONDS
        while container.logs().count(STARTED.encode()) < self._starts:
            container.reload()
            if container.status != "running" or time.monotonic() > deadline:
                log = container.logs(tail=40).decode(errors="replace")
                raise RuntimeError(f"Kafka is {container.status} and has not started:\n{log}")
            time.sleep(0.2)


@dataclass(frozen=True)
class BrokerKind:
    """A way to run brokers on this machine, and why it was chosen, for people to read."""

    description: str
    run: Callable[[Path], Iterator[Broker]]


def choose_brokers() -> BrokerKind:
    """Containers if a Docker engine has the image or can pull it, Kafka on this machine's Java otherwise.

    TEST_BROKER=docker or =maven allows that one only. Raises KafkaUnavailable with what is missing.
    """
    wanted = os.environ.get("TEST_BROKER", "auto")
    if wanted not in {"auto", "docker", "maven"}:
        raise KafkaUnavailable(f"TEST_BROKER={wanted} is neither auto, docker nor maven")
    reason = "TEST_BROKER=maven"
    if wanted != "maven":
        try:
            require_image(print)
            return BrokerKind(f"testcontainers, {IMAGE}", _containers)
        except KafkaUnavailable as error:
            if wanted == "docker":
                raise
            reason = str(error)
    java, jars = find_java(), kafka_jars(Path(__file__).parents[2] / ".kafka")

    def on_java(directory: Path) -> Iterator[Broker]:
        broker = MavenBroker(directory, jars, java)
        try:
            yield broker
        finally:
            broker.kill()

    return BrokerKind(
        f"NOT testcontainers but Kafka {KAFKA_VERSION} on this machine's Java: {reason}", on_java
    )


@contextmanager
def running(kind: BrokerKind, directory: Path) -> Iterator[Broker]:
    """A fresh broker, gone with its data at the end of the block."""
    yield from kind.run(directory)


def _containers(directory: Path) -> Iterator[Broker]:
    with KafkaContainer() as broker:
        yield broker
