"""One Kafka broker on this machine, its own controller, from a container image or from Maven artifacts.

Both kinds are given the same properties: a container reads them from KAFKA_* variables.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Mapping
from typing import Final

from stream.demo.processes import Child

KAFKA_VERSION: Final = "4.1.1"
IMAGE: Final = f"apache/kafka:{KAFKA_VERSION}"
CLUSTER_ID: Final = "4L6g3nShT-eMCtK--X86sw"
HEAP_OPTIONS: Final = "-Xms256m -Xmx256m"
# a serial collector and the quick compiler: a broker shares a small machine with what talks to it
JVM_OPTIONS: Final = "-XX:+UseSerialGC -XX:TieredStopAtLevel=1"
START_SECONDS: Final = 60.0
STARTED: Final = "Kafka Server started"

_PROPERTIES: Final = {
    "node.id": "1",
    "process.roles": "broker,controller",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "inter.broker.listener.name": "PLAINTEXT",
    "controller.listener.names": "CONTROLLER",
    # a topic that nobody made is a mistake, not a topic of one partition
    "auto.create.topics.enable": "false",
    "offsets.topic.num.partitions": "1",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.num.partitions": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
    # so that what a killed or frozen daemon does to the others can be seen soon
    "group.min.session.timeout.ms": "1000",
    # a killed broker is let in again only once its old session has run out (9 s by default)
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
}


class KafkaUnavailable(Exception):
    """This way to a broker is closed; the message is a clause that says what is missing."""


def broker_properties(*, listen: str, controller: str, advertised: str | None = None) -> dict[str, str]:
    """Broker properties for listeners at these host:port; `advertised` is what clients are told, if known."""
    return {
        **_PROPERTIES,
        "listeners": f"PLAINTEXT://{listen},CONTROLLER://{controller}",
        "controller.quorum.voters": f"1@localhost:{controller.rpartition(':')[2]}",
        **({"advertised.listeners": f"PLAINTEXT://{advertised}"} if advertised else {}),
    }


def container_environment(properties: Mapping[str, str]) -> dict[str, str]:
    """The variables by which the image takes its properties, cluster id and JVM options."""
    return {
        "CLUSTER_ID": CLUSTER_ID,
        "KAFKA_HEAP_OPTS": HEAP_OPTIONS,
        "KAFKA_JVM_PERFORMANCE_OPTS": JVM_OPTIONS,
        **{f"KAFKA_{key.upper().replace('.', '_')}": value for key, value in properties.items()},
    }


def free_port() -> int:
    """A free port below the range that outgoing connections are given (32768 up).

    A client that keeps reconnecting to a stopped broker cannot end up holding the broker's port itself.
    """
    for port in random.sample(range(20_000, 32_768), 200):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise OSError("no free port between 20000 and 32767")


def wait_until_started(broker: Child) -> None:
    """Return once the broker serves requests; raises ChildFailed with the end of its log."""
    broker.wait_until(lambda: STARTED in broker.output(), START_SECONDS)
