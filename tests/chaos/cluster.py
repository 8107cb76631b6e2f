"""A Kafka of three brokers, each a process of its own and a controller too, to be killed, frozen and led by others."""

from __future__ import annotations

import asyncio
import shutil
import signal
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import AlterPartitionReassignmentsRequest
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Int8, Int16, Int32, Schema, String

from stream.demo import maven_broker
from stream.demo.broker import JVM_OPTIONS, broker_properties, free_port, wait_until_started
from stream.demo.maven_broker import find_java, format_storage, kafka_jars
from stream.demo.processes import Child

BROKERS = (1, 2, 3)
DIRECT = "DIRECT"
"""The listener that leads to the brokers by no proxy."""
_HEAP = ("-Xms256m", "-Xmx320m")
_JARS = Path(__file__).parents[2] / ".kafka"


def free_ports(count: int) -> list[int]:
    """Ports that are free and differ."""
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port())
    return list(ports)


class Cluster:
    """Three brokers with a listener for each name, told to clients under the addresses of `advertised`.

    Every topic has three replicas, of which two must have a record before it is acknowledged. Nothing is compacted, so
    that what was ever written can be judged.
    """

    def __init__(self, directory: Path, proxied: Sequence[str]) -> None:
        self.directory = directory
        self.proxied = tuple(proxied)
        names = (DIRECT, *self.proxied)
        ports = iter(free_ports(len(BROKERS) * (len(names) + 1 + len(self.proxied))))
        self._controllers = {broker: next(ports) for broker in BROKERS}
        self.ports = {(name, broker): next(ports) for broker in BROKERS for name in names}
        """Where a broker listens for whom."""
        self.advertised = {
            (name, broker): self.ports[name, broker] if name == DIRECT else next(ports)
            for broker in BROKERS
            for name in names
        }
        """Where clients are told that it does: a proxy has to listen there for all but DIRECT."""
        jars = kafka_jars(_JARS)
        log4j = Path(maven_broker.__file__).parent / "log4j2.properties"
        self._java = [find_java(), "-cp", f"{jars}/*", f"-Dlog4j2.configurationFile={log4j}"]
        self._running: dict[int, Child] = {}

    def start(self) -> None:
        """Format and start all brokers; raises ChildFailed."""
        for broker in BROKERS:
            self._configure(broker)
        self._format()
        for broker in BROKERS:
            self._launch(broker)
        for broker in BROKERS:
            wait_until_started(self._running[broker])

    def servers(self, name: str = DIRECT) -> str:
        """The bootstrap servers of a listener."""
        return ",".join(f"127.0.0.1:{self.advertised[name, broker]}" for broker in BROKERS)

    def data(self, broker: int) -> Path:
        """Where a broker keeps its topics."""
        return self.directory / f"broker-{broker}" / "data"

    def kill(self, broker: int) -> None:
        """SIGKILL."""
        self._running[broker].kill()

    def restart(self, broker: int) -> None:
        """Start a killed broker again; returns once it serves."""
        self._launch(broker)
        wait_until_started(self._running[broker])

    def freeze(self, broker: int) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        self._running[broker].send(signal.SIGSTOP)

    def thaw(self, broker: int) -> None:
        """SIGCONT."""
        self._running[broker].send(signal.SIGCONT)

    def close(self) -> None:
        """Kill all brokers."""
        for child in self._running.values():
            child.kill()

    def _home(self, broker: int) -> Path:
        return self.directory / f"broker-{broker}"

    def _configure(self, broker: int) -> None:
        home = self._home(broker)
        home.mkdir(parents=True)
        names = (DIRECT, *self.proxied)
        controller = f"localhost:{self._controllers[broker]}"
        listeners = [f"{name}://127.0.0.1:{self.ports[name, broker]}" for name in names]
        properties: Mapping[str, str] = {
            **broker_properties(listen=f"127.0.0.1:{self.ports[DIRECT, broker]}", controller=controller),
            "node.id": str(broker),
            "log.dirs": str(self.data(broker)),
            "listeners": ",".join([*listeners, f"CONTROLLER://{controller}"]),
            "advertised.listeners": ",".join(
                f"{name}://127.0.0.1:{self.advertised[name, broker]}" for name in names
            ),
            "listener.security.protocol.map": ",".join(
                f"{name}:PLAINTEXT" for name in (*names, "CONTROLLER")
            ),
            "inter.broker.listener.name": DIRECT,
            "controller.quorum.voters": ",".join(
                f"{one}@localhost:{port}" for one, port in self._controllers.items()
            ),
            "controller.quorum.fetch.timeout.ms": "1500",
            "controller.quorum.election.timeout.ms": "500",
            "default.replication.factor": "3",
            "min.insync.replicas": "2",
            "replica.lag.time.max.ms": "4000",
            "offsets.topic.num.partitions": "3",
            "offsets.topic.replication.factor": "3",
            "transaction.state.log.num.partitions": "3",
            "transaction.state.log.replication.factor": "3",
            "transaction.state.log.min.isr": "2",
            "auto.leader.rebalance.enable": "false",  # leaders move when a fault says so
            "log.cleaner.enable": "false",
            "num.network.threads": "1",  # for each listener
            "num.io.threads": "4",
        }
        (home / "server.properties").write_text(
            "".join(f"{key}={value}\n" for key, value in properties.items())
        )

    def _format(self) -> None:
        """Format one broker's storage by Kafka's tool and the others' alike: a JVM for each would take seconds."""
        format_storage(self._java, self._home(BROKERS[0]) / "server.properties")
        for broker in BROKERS[1:]:
            shutil.copytree(self.data(BROKERS[0]), self.data(broker))
            meta = self.data(broker) / "meta.properties"
            lines = [line for line in meta.read_text().splitlines() if not line.startswith("directory.id")]
            own = [f"node.id={broker}" if line.startswith("node.id") else line for line in lines]
            directory_id = urlsafe_b64encode(uuid4().bytes).decode().rstrip("=")
            meta.write_text("\n".join([*own, f"directory.id={directory_id}", ""]))

    def _launch(self, broker: int) -> None:
        home = self._home(broker)
        command = [*self._java, *_HEAP, *JVM_OPTIONS.split(), "kafka.Kafka", str(home / "server.properties")]
        self._running[broker] = Child(
            command, home / "kafka.log", name=f"broker {broker}", death_signal=signal.SIGKILL
        )


class _ElectLeadersResponse(Response):  # type: ignore[misc]
    API_KEY = 43
    API_VERSION = 1
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("error_code", Int16),
        (
            "results",
            Array(
                ("topic", String("utf-8")),
                (
                    "partitions",
                    Array(("partition", Int32), ("error_code", Int16), ("error_message", String("utf-8"))),
                ),
            ),
        ),
    )


class _ElectLeadersStruct(RequestStruct):  # type: ignore[misc]
    API_KEY = 43
    API_VERSION = 1
    RESPONSE_TYPE = _ElectLeadersResponse
    SCHEMA = Schema(
        ("election_type", Int8),
        ("topic_partitions", Array(("topic", String("utf-8")), ("partitions", Array(Int32)))),
        ("timeout_ms", Int32),
    )


class _ElectPreferredLeaders(Request[_ElectLeadersStruct]):  # type: ignore[misc]
    """Makes the first replica of each partition its leader; aiokafka has no such request."""

    API_KEY = 43

    def __init__(self, partitions: Mapping[str, Sequence[int]], timeout_ms: int) -> None:
        self._partitions = partitions
        self._timeout_ms = timeout_ms

    def build(self, request_struct_class: type[_ElectLeadersStruct]) -> _ElectLeadersStruct:
        topics = [(topic, list(partitions)) for topic, partitions in self._partitions.items()]
        return request_struct_class(0, topics, self._timeout_ms)


class ClusterAdmin:
    """What is asked of the cluster and told to it, by no proxy."""

    def __init__(self, servers: str) -> None:
        self._client = AIOKafkaAdminClient(bootstrap_servers=servers, request_timeout_ms=10_000)

    async def __aenter__(self) -> ClusterAdmin:
        await self._client.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def out_of_sync(self) -> int:
        """Partitions, of all topics, of which a replica is behind or a leader is missing."""
        return sum(
            len(part["isr"]) < len(part["replicas"]) or part["leader"] < 0
            for topic in await self._client.describe_topics()
            for part in topic["partitions"]
        )

    async def committed(self, group: str, topic: str) -> dict[int, int]:
        """The offsets that a group has committed; no partition without a commit."""
        found = await self._client.list_consumer_group_offsets(group)
        return {tp.partition: at.offset for tp, at in found.items() if tp.topic == topic and at.offset >= 0}

    async def move_leaders(self, topics: Sequence[str], by: int) -> int:
        """Turn the replicas of these topics' partitions by so many places and let the first lead; returns how many."""
        found = await self._client.describe_topics()
        wanted: dict[str, dict[int, list[int]]] = {}
        for topic in found:
            if topic["topic"] not in topics:
                continue
            for part in topic["partitions"]:
                replicas = part["replicas"]
                turn = by % len(replicas)
                wanted.setdefault(topic["topic"], {})[part["partition"]] = replicas[turn:] + replicas[:turn]
        reassign = AlterPartitionReassignmentsRequest(
            10_000,
            [
                (topic, [(number, replicas, {}) for number, replicas in parts.items()], {})
                for topic, parts in wanted.items()
            ],
            {},
        )
        await self._send(reassign)
        await self._send(
            _ElectPreferredLeaders({topic: list(parts) for topic, parts in wanted.items()}, 10_000)
        )
        return sum(len(parts) for parts in wanted.values())

    async def _send(self, request: Any) -> Any:
        # forwarded to the controller by whichever broker gets it
        async with asyncio.timeout(15):
            return await self._client._send_request(request)
