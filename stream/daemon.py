"""The daemon: its parts put together, started in order, run until told to stop, and drained."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import Any, Final

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition

from mtgr.config import BLOCK_EVENTS
from mtgr.errors import InputError
from mtgr.requests import ModelInfo
from mtgr.serving.replicas import Replicas
from schemas.lists import ModelVersion
from stream.assignment import Assignment
from stream.commits import AtLeastOnce, CommitCycle
from stream.committer import Committer
from stream.dead_letters import DeadLetterGuard
from stream.dispatch import Dispatcher
from stream.errors import Fatal
from stream.exactly_once import ExactlyOnce
from stream.generation import Generator, generator_factory
from stream.hot_keys import HotKeys
from stream.kafka import start, stop
from stream.observability import Health, HttpEndpoint, Metrics
from stream.partition import Partition, PartitionSettings
from stream.restore import Restorer
from stream.retention import RetentionRules
from stream.settings import Settings
from stream.source import Source, events_consumer, lone_consumer, read_record
from stream.state import RocksMemory
from stream.supervision import COMPONENT as GENERATOR
from stream.supervision import SupervisedGenerator
from stream.topic_reports import TopicReport
from stream.topics import ensure_topics
from stream.triggers import TriggerRules
from stream.videos import COMPONENT as VIDEOS
from stream.videos import VideoTable

log = structlog.get_logger(__name__)

_MIB: Final = 1 << 20
_DAY_MS: Final = 86_400_000
_GC_THRESHOLDS: Final = (50_000, 20, 100)
_LAST_COMMIT_SECONDS: Final = 5.0


class _Stopped(Exception):
    """The daemon was told to stop while it started."""


class Daemon:
    """Turns events into recommendation lists until it is told to stop.

    `run` returns after a drain; it raises InputError for what is wrong in settings, checkpoint or topics, and Fatal
    where the daemon cannot go on, which it cannot either when any of its tasks raises what nobody has foreseen.
    """

    def __init__(self, settings: Settings) -> None:
        """InputError if the checkpoint is not named or is wrong."""
        self._settings = settings
        self._new_generators = {
            f"{GENERATOR}-{replica}" if replica else GENERATOR: generator_factory(settings, replica)
            for replica in range(settings.generator.replicas)
        }
        self.metrics = Metrics()
        components = ["kafka", *self._new_generators, "partitions"]
        if settings.topics.videos is not None:
            components.append(VIDEOS)
        self.health = Health(components)
        self._hot_keys = HotKeys()
        self.endpoint = HttpEndpoint(settings.http, self.metrics, self.health, self._hot_keys)
        self._partitions: dict[TopicPartition, Partition] = {}
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Begin the drain: fetch nothing more, finish what fits the deadline, commit, leave the group."""
        self._stopping.set()

    def handle_signals(self) -> None:
        """Drain at the first SIGTERM or SIGINT, exit at once at the second."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: signal.Signals) -> None:
        if self._stopping.is_set():
            os._exit(128 + number)  # the engine's process ends with its parent
        log.info("stop_requested", signal=number.name)
        self.stop()

    async def run(self) -> None:
        """Start, serve, drain; see the class for what is raised."""
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.endpoint)
            try:
                await self._serve(stack)
            except _Stopped:
                log.info("stopped_before_ready")
            except Fatal as error:
                self.health.fatal(str(error))
                raise
            except (InputError, ModuleNotFoundError):
                raise
            except Exception as error:
                log.exception("daemon_failed")
                fatal = Fatal(f"unexpected {type(error).__name__}: {error} (its traceback is in the log)")
                self.health.fatal(str(fatal))
                raise fatal from error

    async def _serve(self, stack: AsyncExitStack) -> None:
        settings = self._settings
        # each is supervised by itself: while one restarts, the users of the others get their lists
        engines = [
            SupervisedGenerator(
                new_generator,
                timeout_seconds=settings.generator.request_timeout_seconds,
                max_restarts=settings.generator.max_restarts,
                metrics=self.metrics,
                health=self.health,
                component=component,
            )
            for component, new_generator in self._new_generators.items()
        ]
        self.metrics.watch_caches(
            lambda: {str(replica): one.cache_stats() for replica, one in enumerate(engines)}
        )
        generator = Replicas(engines)
        stack.push_async_callback(generator.close)
        self.health.not_ready("kafka", f"connecting to {settings.kafka.bootstrap_servers}")
        topics = {report.topic.role: report for report in await self._unless_stopped(ensure_topics(settings))}
        self.health.ready("kafka")
        model = await self._unless_stopped(generator.start())
        table = await self._video_table(stack, generator, topics.get("videos"))

        consumer = events_consumer(settings)
        new_cycle = ExactlyOnce if settings.stream.delivery == "exactly_once" else AtLeastOnce
        cycle = new_cycle(settings, consumer, int(topics["dead_letters"].configs["max.message.bytes"]))
        assignment = self._assignment(consumer, model)
        committer = self._committer(consumer, cycle, assignment)
        window, share_limit = settings.stream.dead_letter_window, settings.stream.dead_letter_share_limit
        dispatcher = Dispatcher(
            self._partitions,
            generator,
            cycle,
            self.metrics,
            DeadLetterGuard("lists", window, share_limit),
            lambda tp, offset: read_record(settings, tp, offset),
            max_users=settings.generator.max_batch_users,
            max_batches=settings.generator.max_concurrent_batches,
            patience_seconds=settings.kafka.connect_timeout_seconds,
        )
        assignment.attach(cycle, committer, dispatcher.wake)
        source = self._source(consumer, DeadLetterGuard("records", window, share_limit), dispatcher)

        await self._unless_stopped(cycle.start())
        stack.push_async_callback(cycle.stop)
        consumer.subscribe([settings.topics.events], listener=assignment)
        await self._unless_stopped(start(consumer, settings.kafka))
        stack.push_async_callback(_leave, consumer)
        stack.push_async_callback(assignment.close_all)
        # start-up's objects live as long as the daemon: no collection need ever look at them again
        gc.collect()
        gc.freeze()
        # records come and go by the thousand, and none is part of a cycle: looking for one that often costs 5 %
        gc.set_threshold(*_GC_THRESHOLDS)
        log.info("daemon_started", group=settings.kafka.group_id, model=model.name, version=model.version)
        await self._loops(source, dispatcher, committer, assignment, table)

    async def _video_table(
        self, stack: AsyncExitStack, generator: Generator, report: TopicReport | None
    ) -> VideoTable | None:
        """The videos topic, read to its end before the first list is made; None where there is none."""
        if report is None:
            return None
        settings = self._settings
        consumer = lone_consumer(settings)
        await self._unless_stopped(start(consumer, settings.kafka))
        stack.push_async_callback(stop, consumer)
        table = VideoTable(
            consumer,
            [TopicPartition(report.topic.name, number) for number in range(report.partitions)],
            generator.add_videos,
            self.metrics,
            self.health,
            patience_seconds=settings.kafka.connect_timeout_seconds,
        )
        await self._unless_stopped(table.catch_up())
        return table

    async def _loops(
        self,
        source: Source,
        dispatcher: Dispatcher,
        committer: Committer,
        assignment: Assignment,
        table: VideoTable | None,
    ) -> None:
        reading = asyncio.create_task(source.run(), name="source")
        making = asyncio.create_task(dispatcher.run(), name="dispatcher")
        committing = asyncio.create_task(committer.run(), name="committer")
        stopping = asyncio.create_task(self._stopping.wait(), name="stopping")
        serving = {making}
        if table is not None:
            serving.add(asyncio.create_task(table.run(), name="videos"))
        working = {reading, committing, asyncio.ensure_future(assignment.failure), *serving}
        try:
            await _first(working | {stopping})
            # told to stop: no event is read from here on, but lists are still made and committed
            started = time.monotonic()
            self.health.not_ready("daemon", "it drains")
            await _cancel(reading)
            dispatcher.hurry()
            draining = asyncio.create_task(dispatcher.drained(), name="draining")
            try:
                async with asyncio.timeout(self._settings.stream.drain_deadline_seconds):
                    await _first((working - {reading}) | {draining})
            except TimeoutError:
                owed = sum(part.owed for part in self._partitions.values())
                log.warning("drain_deadline_passed", owed=owed)
            finally:
                await _cancel(draining, *serving)
            try:
                # behind the cycle under way: one that was cancelled would be done again, dead letters and all
                async with asyncio.timeout(_LAST_COMMIT_SECONDS):
                    await committer.commit(self._partitions.values())
            except TimeoutError:
                log.warning("last_commit_timed_out")
            log.info("drained", seconds=round(time.monotonic() - started, 2))
        finally:
            await _cancel(reading, committing, *serving, stopping)

    async def _unless_stopped(self, step: Coroutine[Any, Any, Any]) -> Any:
        """The result of a step of the start, which a stop interrupts; raises _Stopped then."""
        task = asyncio.ensure_future(step)
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise _Stopped
            return task.result()
        finally:
            await _cancel(task, stopping)

    def _assignment(self, consumer: AIOKafkaConsumer, model: ModelInfo) -> Assignment:
        settings = self._settings
        wanted = settings.state.max_events or model.max_events
        max_events = min(-(-wanted // BLOCK_EVENTS) * BLOCK_EVENTS, model.max_events)  # cut in whole blocks
        return Assignment(
            self._partitions,
            consumer,
            Restorer(
                lambda: lone_consumer(settings),
                self.metrics,
                self.health,
                directory=settings.state.directory,
                store_memory=RocksMemory(settings.state.store_mebibytes * _MIB),
                group_id=settings.kafka.group_id,
                changelog_topic=settings.changelog_topic,
                patience_seconds=settings.kafka.connect_timeout_seconds,
            ),
            PartitionSettings(
                rules=TriggerRules(
                    settings.trigger.min_events,
                    settings.trigger.quiet_period_ms / 1000,
                    settings.trigger.max_wait_ms / 1000,
                ),
                max_events=max_events,
                list_length=settings.generator.list_length,
                strategy=settings.generator.strategy,
                max_event_bytes=settings.stream.max_event_bytes,
                cache_bytes=settings.state.cache_mebibytes * _MIB,
                model=ModelVersion(model.name, model.version),
                retention=_retention(settings),
            ),
            self.metrics,
            self.health,
            leave_seconds=settings.stream.drain_deadline_seconds,
        )

    def _committer(self, consumer: AIOKafkaConsumer, cycle: CommitCycle, assignment: Assignment) -> Committer:
        return Committer(
            self._partitions,
            cycle,
            consumer,
            self.metrics,
            self.health,
            assignment.regain,
            interval_seconds=self._settings.stream.commit_interval_ms / 1000,
            patience_seconds=self._settings.kafka.connect_timeout_seconds,
        )

    def _source(self, consumer: AIOKafkaConsumer, guard: DeadLetterGuard, dispatcher: Dispatcher) -> Source:
        stream = self._settings.stream
        return Source(
            consumer,
            self._partitions,
            self.metrics,
            guard,
            dispatcher.wake,
            self._hot_keys,
            max_poll_records=self._settings.kafka.max_poll_records,
            max_bytes=stream.max_in_flight_mebibytes * _MIB,
            max_owed=stream.max_owed_requests,
        )


def _retention(settings: Settings) -> RetentionRules:
    days, mebibytes = settings.state.ttl_days, settings.state.max_partition_mebibytes
    return RetentionRules(
        None if days is None else round(days * _DAY_MS), None if mebibytes is None else mebibytes * _MIB
    )


async def _first(tasks: set[asyncio.Future[Any]]) -> None:
    """Wait for the first of these to end, and raise what it raised."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        error = task.exception()
        while isinstance(error, BaseExceptionGroup):  # a task group wraps even a single error
            error = error.exceptions[0]
        if error is not None:
            raise error


async def _cancel(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _leave(consumer: AIOKafkaConsumer) -> None:
    """Leave the group, so that the others get the partitions at once and not after the session's time."""
    if not await stop(consumer):
        log.warning("group_not_left")
