"""Runs commit cycles: one every interval, one at a time, again after a failure, for a bounded time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from typing import Final

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from stream.commits import CommitCycle
from stream.errors import Fatal
from stream.observability import Health, Metrics
from stream.partition import CommitWork, Partition, Phase

log = structlog.get_logger(__name__)

_COMPONENT: Final = "kafka"
_FIRST_PAUSE_SECONDS: Final = 0.2
_LONGEST_PAUSE_SECONDS: Final = 5.0
_IDLE_CHECK_SECONDS: Final = 5.0


class Committer:
    """Commits all partitions together, so that one acknowledgement and one offset commit serve them all.

    A cycle that Kafka fails is repeated, the same work again, until it succeeds; Fatal after `patience_seconds` of
    that.
    """

    def __init__(
        self,
        partitions: Mapping[TopicPartition, Partition],
        cycle: CommitCycle,
        consumer: AIOKafkaConsumer,
        metrics: Metrics,
        health: Health,
        *,
        interval_seconds: float,
        patience_seconds: float,
    ) -> None:
        self._partitions = partitions
        self._cycle = cycle
        self._consumer = consumer
        self._metrics = metrics
        self._health = health
        self._interval = interval_seconds
        self._patience = patience_seconds
        self._lock = asyncio.Lock()
        self._heard = time.monotonic()  # when Kafka last answered

    async def run(self) -> None:
        """Commit every interval until cancelled; raises Fatal."""
        due = time.monotonic()
        while True:
            due = max(due + self._interval, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
            await self.commit(self._partitions.values())
            if time.monotonic() - self._heard > _IDLE_CHECK_SECONDS:
                await self._ask_kafka()

    async def commit(self, partitions: Iterable[Partition]) -> None:
        """Make everything these partitions did so far durable; raises Fatal."""
        async with self._lock:
            work = [taken for partition in list(partitions) if (taken := partition.take_work()) is not None]
            if work:
                await self._commit(work)

    async def _commit(self, work: list[CommitWork]) -> None:
        pause = _FIRST_PAUSE_SECONDS
        failing_since: float | None = None
        while True:
            started = time.monotonic()
            try:
                await self._cycle.commit(work)
            except (KafkaError, OSError) as error:
                now = time.monotonic()
                failing_since = failing_since if failing_since is not None else started
                self._metrics.commit_failures.inc()
                self._unreachable(error, now - failing_since)
            else:
                break
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            work = [part for part in work if part.partition.phase is not Phase.CLOSED]
            if not work:
                return
            await self._cycle.restart()
        for part in work:
            part.partition.committed(part)
        self._heard = time.monotonic()
        seconds = self._heard - started
        self._metrics.commits.inc()
        self._metrics.commit_seconds.observe(seconds)
        self._health.ready(_COMPONENT)
        log.debug(
            "commit_finished",
            partitions=len(work),
            states=sum(len(part.states) for part in work),
            dead_letters=sum(len(part.dead) for part in work),
            seconds=round(seconds, 4),
        )

    async def _ask_kafka(self) -> None:
        """See whether a broker answers, though there is nothing to commit."""
        try:
            async with asyncio.timeout(_IDLE_CHECK_SECONDS):
                await self._consumer.topics()
        except (KafkaError, OSError, TimeoutError) as error:
            self._unreachable(error, time.monotonic() - self._heard)
        else:
            self._heard = time.monotonic()
            self._health.ready(_COMPONENT)

    def _unreachable(self, error: Exception, seconds: float) -> None:
        reason = str(error) or type(error).__name__
        log.warning("kafka_failed", error=reason, failing_for_seconds=round(seconds, 1))
        self._health.not_ready(_COMPONENT, reason)
        if seconds > self._patience:
            raise Fatal(
                f"Kafka has failed for {seconds:.0f} seconds (kafka.connect_timeout_seconds = "
                f"{self._patience:g}): {reason}"
            )
