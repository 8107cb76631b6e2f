"""Which Kafka to use on this machine: one that is given, a container, or one on the machine's Java."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from mtgr.errors import InputError
from stream.demo.broker import IMAGE, KAFKA_VERSION, KafkaUnavailable
from stream.demo.docker_broker import docker_broker, require_image
from stream.demo.maven_broker import MavenBroker, find_java, kafka_jars
from stream.demo.processes import ChildFailed

VARIABLE: Final = "KAFKA_BOOTSTRAP_SERVERS"
JARS: Final = Path(".kafka")


@contextmanager
def local_kafka(directory: Path, say: Callable[[str], None]) -> Iterator[str]:
    """Give the bootstrap servers of a Kafka to use, telling `say` which and why.

    What was started ends with the block. In this order: KAFKA_BOOTSTRAP_SERVERS if
    set; a container if a Docker engine answers and the image can be had; Kafka's Maven artifacts (kept in
    `.kafka/`) on the machine's Java. Data and logs go under `directory`.
    Raises InputError with what is missing if none of the three is possible.
    """
    if given := os.environ.get(VARIABLE):
        say(f"Kafka at {given}, from {VARIABLE}")
        yield given
        return
    with ExitStack() as stack:
        try:
            require_image(say)
            servers = stack.enter_context(docker_broker(directory))
            say(f"Kafka at {servers}, a container of {IMAGE}")
        except (KafkaUnavailable, ChildFailed) as no_docker:
            try:
                java, jars = find_java(), kafka_jars(JARS)
            except KafkaUnavailable as no_maven:
                raise InputError(
                    f"no Kafka: {no_docker}, and {no_maven}. "
                    f"Start Docker, or install Java 17 or later and Maven, or set {VARIABLE}"
                ) from None
            broker = MavenBroker(directory, jars, java)
            stack.callback(broker.kill)
            servers = broker.bootstrap_servers
            say(f"Kafka at {servers}, version {KAFKA_VERSION} on this machine's Java ({no_docker})")
        yield servers
