"""Runs commit cycles: one every interval, one at a time, again after a failure, for a bounded time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from stream.commits import CommitCycle, PartitionsLost
from stream.errors import Fatal
from stream.kafka import KafkaUnreachable
from stream.observability import Health, Metrics
from stream.partition import CommitWork, Partition, Phase

log = structlog.get_logger(__name__)

_COMPONENT: Final = "kafka"
_FIRST_PAUSE_SECONDS: Final = 0.2
_LONGEST_PAUSE_SECONDS: Final = 5.0
_IDLE_CHECK_SECONDS: Final = 5.0
_SLOW_SECONDS: Final = 5.0


class Committer:
    """Commits all partitions together, so that one acknowledgement and one offset commit serve them all.

    A cycle that Kafka fails is repeated, the same work again, until it succeeds; Fatal after `patience_seconds` of
    that. `on_abandoned` is told of a partition whose work was given up, and which has to begin again.
    """

    def __init__(
        self,
        partitions: Mapping[TopicPartition, Partition],
        cycle: CommitCycle,
        consumer: AIOKafkaConsumer,
        metrics: Metrics,
        health: Health,
        on_abandoned: Callable[[Partition], None],
        *,
        interval_seconds: float,
        patience_seconds: float,
    ) -> None:
        self._partitions = partitions
        self._cycle = cycle
        self._consumer = consumer
        self._metrics = metrics
        self._health = health
        self._on_abandoned = on_abandoned
        self._interval = interval_seconds
        self._patience = patience_seconds
        self._lock = asyncio.Lock()
        self._work: list[CommitWork] = []  # taken from the partitions and not committed yet
        self._broken = False  # the last cycle failed: connect anew before the next
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

    async def settled(self) -> None:
        """Return once no cycle is under way that was when this was called."""
        async with self._lock:
            pass

    async def commit(self, partitions: Iterable[Partition]) -> None:
        """Make everything these partitions did so far durable; raises Fatal.

        Work that a cancelled call had taken is repeated before any later one: some of it may be durable, and
        what was made of it afterwards stands on all of it.
        """
        async with self._lock:
            await self._commit()
            self._work = [taken for part in list(partitions) if (taken := part.take_work()) is not None]
            await self._commit()

    async def _commit(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        failing_since: float | None = None
        while True:
            self._work = [part for part in self._work if part.partition.phase is not Phase.CLOSED]
            if not self._work and not self._broken:
                return
            started = time.monotonic()
            try:
                abandoned = await self._run_cycle(self._work)
            except (KafkaError, OSError) as error:
                self._broken = True
                now = time.monotonic()
                failing_since = failing_since if failing_since is not None else started
                self._metrics.commit_failures.inc()
                self._unreachable(str(error) or type(error).__name__, now - failing_since)
            except PartitionsLost as error:
                # the group is about to take them away: what they hold is read again by their new owner
                log.warning(
                    "partitions_lost",
                    reason=" ".join(str(error).split()),
                    partitions=[part.partition.tp.partition for part in self._work],
                )
                for part in self._work:
                    part.partition.lose()
                continue
            except KafkaUnreachable as error:
                raise Fatal(str(error)) from error
            else:
                break
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        given_up = {part.partition for part in abandoned}
        work = [part for part in self._work if part.partition not in given_up]
        self._work = []
        for partition in given_up:
            self._metrics.commit_failures.inc()
            partition.lose()
            self._on_abandoned(partition)
        for part in work:
            part.partition.committed(part)
            self._metrics.published(part.lists)
        self._heard = time.monotonic()
        seconds = self._heard - started
        self._metrics.commits.inc()
        self._metrics.commit_seconds.observe(seconds)
        self._health.ready(_COMPONENT)
        log.debug(
            "commit_finished",
            partitions=len(work),
            states=sum(len(part.states) for part in work),
            lists=sum(len(part.lists) for part in work),
            dead_letters=sum(len(part.dead) for part in work),
            seconds=round(seconds, 4),
        )

    async def _run_cycle(self, work: list[CommitWork]) -> Sequence[CommitWork]:
        """One cycle, and word of it when Kafka takes long: the clients themselves wait for a lost broker for ever."""

        async def run() -> Sequence[CommitWork]:
            if self._broken:
                await self._cycle.restart()
            abandoned = await self._cycle.commit(work) if work else ()
            self._broken = False
            return abandoned

        started = time.monotonic()
        cycle = asyncio.ensure_future(run())
        try:
            while not (await asyncio.wait({cycle}, timeout=_SLOW_SECONDS))[0]:
                seconds = time.monotonic() - started
                self._unreachable("a commit is not acknowledged", seconds)
            return cycle.result()
        finally:
            if not cycle.done():
                cycle.cancel()
                await asyncio.gather(cycle, return_exceptions=True)

    async def _ask_kafka(self) -> None:
        """See whether a broker answers, though there is nothing to commit."""
        try:
            async with asyncio.timeout(_IDLE_CHECK_SECONDS):
                await self._consumer.topics()
        except (KafkaError, OSError, TimeoutError) as error:
            self._unreachable(str(error) or type(error).__name__, time.monotonic() - self._heard)
        else:
            self._heard = time.monotonic()
            self._health.ready(_COMPONENT)

    def _unreachable(self, reason: str, seconds: float) -> None:
        log.warning("kafka_failed", error=reason, failing_for_seconds=round(seconds, 1))
        self._health.not_ready(_COMPONENT, reason)
        if seconds > self._patience:
            raise Fatal(
                f"Kafka has failed for {seconds:.0f} seconds (kafka.connect_timeout_seconds = "
                f"{self._patience:g}): {reason}"
            )
