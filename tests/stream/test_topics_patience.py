"""Topics are looked up with patience: a broker that is away for a moment stops no daemon that starts."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.admin.config_resource import ConfigResource
from aiokafka.errors import NodeNotReadyError

from stream import topics
from stream.kafka import KafkaUnreachable
from stream.settings import KafkaSettings, Settings, TopicSettings

_CONFIGS = (("cleanup.policy", "compact"), ("max.message.bytes", "1"))


class Admin:
    """An admin client that comes upon a broker that is away so many times, and then upon another.

    So many brokers have not heard of its topics yet.
    """

    def __init__(self, failures: int = 0, ignorant: int = 0) -> None:
        self.failures = failures
        self.ignorant = ignorant

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def describe_topics(self) -> list[dict[str, Any]]:
        if self.failures:
            self.failures -= 1
            raise NodeNotReadyError("Attempt to send a request to node which is not ready (node id 3).")
        return [{"topic": "events", "partitions": [{"leader": 1, "replicas": [1, 2, 3]}] * 4}]

    async def describe_configs(self, resources: Sequence[ConfigResource]) -> list[SimpleNamespace]:
        code, self.ignorant = (3, self.ignorant - 1) if self.ignorant else (0, 0)
        return [SimpleNamespace(resources=[(code, "", 2, one.name, _CONFIGS) for one in resources])]


async def test_a_broker_that_is_away_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one broker does not tell because it is down, another tells a moment later."""
    monkeypatch.setattr(topics, "_Admin", lambda **options: Admin(failures=2))
    assert await topics.partition_count(KafkaSettings(), "events") == 4


async def test_a_cluster_that_never_answers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no broker tells it within kafka.connect_timeout_seconds, one line says which were asked."""
    monkeypatch.setattr(topics, "_Admin", lambda **options: Admin(failures=1_000_000))
    with pytest.raises(KafkaUnreachable, match=r"localhost:9092.*no answer for 0\.3 seconds"):
        await topics.partition_count(KafkaSettings(connect_timeout_seconds=0.3), "events")


async def test_a_topic_that_not_every_broker_has_heard_of_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A topic that has just been created is known to one broker a moment before the next."""
    monkeypatch.setattr(topics, "_Admin", lambda **options: Admin(ignorant=2))
    settings = Settings(topics=TopicSettings(events="events", partitions=4))
    reports = {report.topic.role: report for report in await topics.review_topics(settings, create=False)}
    assert reports["events"].configs == dict(_CONFIGS)
    assert reports["lists"].outcome == "missing"
