"""Brokers and topic names for tests that need a real Kafka."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from brokers import Broker, BrokerKind, choose_brokers, running
from checkpoints import tiny_checkpoint
from daemons import Deployment, deployed
from generators import Script, served
from records import TopicNames, create_topic
from secure_brokers import SecureBroker, secure_broker

from mtgr.reference import ReferenceRecommender
from stream.demo.broker import KafkaUnavailable


@functools.cache
def _brokers() -> BrokerKind | KafkaUnavailable:
    try:
        return choose_brokers()
    except KafkaUnavailable as missing:
        return missing


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a broker by what it asks for."""
    for item in items:
        if {"kafka", "restartable_kafka"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.broker)


def pytest_report_collectionfinish(items: list[pytest.Item]) -> str | None:
    """Say which Kafka the tests of this run talk to."""
    if not any(item.get_closest_marker("broker") for item in items):
        return None
    kind = _brokers()
    return f"Kafka for tests: {kind.description if isinstance(kind, BrokerKind) else f'NONE, {kind}'}"


@pytest.fixture(scope="session")
def broker_kind() -> BrokerKind:
    """How this machine runs brokers; fails where it cannot."""
    kind = _brokers()
    if isinstance(kind, KafkaUnavailable):
        pytest.fail(f"no Kafka for tests: {kind}", pytrace=False)
    return kind


@pytest.fixture(scope="session")
def kafka(broker_kind: BrokerKind, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Bootstrap servers of a broker that all tests share: leave it running."""
    with running(broker_kind, tmp_path_factory.mktemp("kafka")) as broker:
        yield broker.bootstrap_servers


@pytest.fixture(scope="session")
def secure_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureBroker]:
    """A broker with TLS, SASL and an authorizer that all tests share; what is granted is for a test's own topics."""
    try:
        with secure_broker(tmp_path_factory.mktemp("secure-kafka")) as broker:
            yield broker
    except KafkaUnavailable as missing:
        pytest.fail(f"no Kafka for tests: {missing}", pytrace=False)


@pytest.fixture
def restartable_kafka(broker_kind: BrokerKind, tmp_path: Path) -> Iterator[Broker]:
    """A broker of the test's own, to kill, freeze and restart."""
    with running(broker_kind, tmp_path / "kafka") as broker:
        yield broker


@pytest.fixture
def topic_names() -> TopicNames:
    """Names for a group and its topics; nothing is created."""
    run = f"test-{uuid4().hex[:12]}"
    return TopicNames(
        group=run,
        events=f"{run}-events",
        lists=f"{run}-lists",
        dead_letters=f"{run}-events.dlq",
        changelog=f"{run}-changelog",
    )


@pytest.fixture
async def topics(kafka: str, topic_names: TopicNames) -> TopicNames:
    """The four topics on the shared broker, two partitions each, the changelog compacted."""
    for name in (topic_names.events, topic_names.lists, topic_names.dead_letters):
        await create_topic(kafka, name, partitions=2)
    await create_topic(kafka, topic_names.changelog, partitions=2, config={"cleanup.policy": "compact"})
    return topic_names


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint of random weights."""
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="session")
def reference(checkpoint: Path) -> ReferenceRecommender:
    """The model of `checkpoint` in plain torch, to compare lists with."""
    return ReferenceRecommender(checkpoint)


@pytest.fixture
def deployment(kafka: str, topics: TopicNames, checkpoint: Path, tmp_path: Path) -> Iterator[Deployment]:
    """Daemons on the shared broker, on topics of the test's own; gone when the test ends."""
    with deployed(kafka, topics, checkpoint, tmp_path) as deployment:
        yield deployment


@pytest.fixture
async def engine(deployment: Deployment, reference: ReferenceRecommender) -> AsyncIterator[Script]:
    """An engine server that the daemons of `deployment` share and the test controls: they start without a model."""
    script = Script(reference)
    async with served(script) as url:
        deployment.use_server(url)
        yield script
