"""The demo itself: a history goes to Kafka, the daemon catches up with it, then events come live."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from time import monotonic, time
from typing import Final

import click
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from msgspec import Struct
from rich.console import Console

from schemas.codecs import JSON
from schemas.events import Event
from schemas.videos import Video
from stream.demo.daemon import DaemonProcess
from stream.demo.ledger import Arrival, Outcome, ends, outcome, stored_events
from stream.demo.log import DemoLog
from stream.demo.next_videos import NextVideos, next_videos
from stream.demo.screen import Screen
from stream.kafka import client_options
from stream.settings import Settings, load_settings
from stream.tools.list_feed import ListFeed
from stream.tools.pacing import Pace, RatePace, Unpaced
from stream.tools.producer import EventProducer, Sent
from stream.tools.video_producer import send_videos
from stream.topics import ensure_topics
from stream.wanted_topics import wanted_topics

_READY_SECONDS: Final = 180.0
_CATCH_UP_SECONDS: Final = 180.0
_SETTLE_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.25
_BUNCH_EVENTS: Final = 500
# of what the daemon did while it caught up: a stream must leave room for what comes at once
_LOAD: Final = 0.4


class Report(Struct, frozen=True):
    """What the demo did, counted in Kafka; batches are as the daemon's metrics have them."""

    history_events: int
    live_events: int
    all_lists: int
    new_videos: int
    """Videos that the model was not trained with, which joined it while the daemon ran."""
    new_videos_listed: int
    """Those of them that were in lists."""
    live: Outcome | None
    next_videos: NextVideos
    dead_letters: int
    duplicates: int
    users_in_batch: float
    daemon_exit_code: int


class Play:
    """One run of the demo against a Kafka that is there, with a model that is trained."""

    def __init__(
        self, servers: str, log: DemoLog, checkpoint: Path, directory: Path, console: Console
    ) -> None:
        name = f"mtgr-demo-{os.getpid()}-{int(time())}"
        self._values: dict[str, object] = {
            "kafka.bootstrap_servers": servers,
            "kafka.group_id": name,
            "kafka.client_id": name,
            "topics.events": f"{name}-events",
            "topics.lists": f"{name}-lists",
            "topics.dead_letters": f"{name}-dead-letters",
            "topics.videos": f"{name}-videos",
            "topics.partitions": 4,
            "model.checkpoint": str(checkpoint),
            "state.directory": str(directory / "state"),
            "log.format": "json",
        }
        overrides = [f"{key}={value}" for key, value in self._values.items()]
        self._settings: Settings = load_settings(None, os.environ, overrides)
        self._log = log
        self._directory = directory
        self._console = console
        self._arrivals: list[Arrival] = []
        self._arrived = asyncio.Event()
        self._stopping = asyncio.Event()

    async def run(self, seconds: float, rate: float | None) -> Report:
        """Play the log for so many seconds, at so many live events a second or what the machine can do.

        A first Ctrl-C ends the live events and goes on to the report, a second one ends everything.
        """
        loop = asyncio.get_running_loop()
        running = asyncio.ensure_future(self._run(seconds, rate))

        def stop() -> None:
            if self._stopping.is_set():
                running.cancel()
            self._stopping.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop)
        try:
            return await running
        except asyncio.CancelledError:
            raise click.Abort from None
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
            await self._delete_topics()

    async def _run(self, seconds: float, rate: float | None) -> Report:
        settings, log = self._settings, self._log
        await ensure_topics(settings)
        await self._send_videos(log.known.videos)
        with DaemonProcess(self._directory, self._values) as daemon:
            await self._until(daemon, daemon.is_ready, _READY_SECONDS, "ready")
            self._say(f"the daemon is ready, as process {daemon.child.pid}; its log is {daemon.child.log}")
            events = {event.event_id: event for event in (*log.history, *log.live)}
            with Screen(self._console, events) as screen:
                async with self._following(screen):
                    screen.progress = "catching up with the history"
                    capacity = await self._catch_up(daemon)
                    live_from = await ends(settings, settings.topics.events)
                    before = await asyncio.to_thread(daemon.metrics)
                    rate = rate or min(len(log.live) / seconds, capacity * _LOAD)
                    await self._go_live(screen, rate, seconds)
                    screen.progress = "the last lists"
                    await self._settle(daemon)
                    after = await asyncio.to_thread(daemon.metrics)
                    exit_code = await asyncio.to_thread(daemon.stop)
                    await self._all_arrived()
        return await self._report(live_from, before, after, exit_code)

    async def _go_live(self, screen: Screen, rate: float, seconds: float) -> None:
        events = self._log.live[: max(1, int(rate * seconds))]

        def show(sent: Sent) -> None:
            screen.progress = f"{sent.events:,} of {len(events):,} live events at {rate:,.0f}/s"

        show(Sent())
        await self._send_videos(self._log.new_videos)
        await self._produce(events, RatePace(rate), show)

    async def _send_videos(self, videos: Sequence[Video]) -> None:
        assert self._settings.topics.videos is not None
        await send_videos(self._settings.kafka, self._settings.topics.videos, videos, JSON)

    async def _produce(
        self, events: Sequence[Event], pace: Pace, on_progress: Callable[[Sent], None] = lambda _: None
    ) -> None:
        """Send events, until all are sent or Ctrl-C."""
        producer = EventProducer(self._settings.kafka, self._settings.topics.events, pace, JSON, on_progress)
        stopping = asyncio.create_task(self._stopping.wait())
        stopping.add_done_callback(lambda _: producer.stop())
        try:
            await producer.run(_bunches(events))
        finally:
            stopping.cancel()

    async def _catch_up(self, daemon: DaemonProcess) -> float:
        """Send the history and wait until every user of it has a list; returns the lists a second that took."""
        history, lists = self._log.history, 0.0

        def caught_up() -> bool:
            nonlocal lists
            metrics = daemon.metrics()
            lists = metrics.get("mtgr_lists_total", 0.0)
            return _is_idle(metrics, len(history))

        began = monotonic()
        await self._produce(history, Unpaced())
        self._say(f"{len(history):,} events of {self._log.users:,} users are in Kafka as their history")
        await self._until(daemon, caught_up, _CATCH_UP_SECONDS, "caught up with the history")
        seconds = max(monotonic() - began, _POLL_SECONDS)
        self._say(f"caught up in {seconds:.1f} s, with {lists:,.0f} lists; what comes now is live")
        return lists / seconds

    async def _settle(self, daemon: DaemonProcess) -> None:
        """Wait until what was sent is served; what is left over is finished when the daemon drains."""
        deadline = monotonic() + _SETTLE_SECONDS
        sent = sum((await ends(self._settings, self._settings.topics.events)).values())
        while not _is_idle(await asyncio.to_thread(daemon.metrics), sent):
            if monotonic() > deadline or self._stopping.is_set():
                return
            await asyncio.sleep(_POLL_SECONDS)

    @contextlib.asynccontextmanager
    async def _following(self, screen: Screen) -> AsyncIterator[None]:
        """Collect and show the lists that come while the block runs."""

        async def follow() -> None:
            while True:
                lists = await feed.next(_POLL_SECONDS)
                if lists:
                    now_ms = time() * 1000
                    arrivals = [Arrival(each, now_ms) for each in lists]
                    self._arrivals += arrivals
                    self._arrived.set()
                    screen.add(arrivals)

        async with ListFeed.open(self._settings, "beginning") as feed:
            following = asyncio.create_task(follow())
            try:
                yield
            finally:
                following.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await following

    async def _all_arrived(self) -> None:
        wanted = sum((await ends(self._settings, self._settings.topics.lists)).values())
        with contextlib.suppress(TimeoutError):  # the report then tells of fewer lists than Kafka has
            async with asyncio.timeout(_SETTLE_SECONDS):
                while len(self._arrivals) < wanted:
                    self._arrived.clear()
                    await self._arrived.wait()

    async def _report(
        self,
        live_from: Mapping[int, int],
        before: Mapping[str, float],
        after: Mapping[str, float],
        exit_code: int,
    ) -> Report:
        settings = self._settings
        events = await stored_events(settings)
        live = [event for event in events if event.offset >= live_from[event.partition]]
        batches, users = (
            after.get(name, 0.0) - before.get(name, 0.0)
            for name in ("mtgr_list_batch_users_count", "mtgr_list_batch_users_sum")
        )
        new = {video.video_id for video in self._log.new_videos}
        listed = {item.video_id for arrival in self._arrivals for item in arrival.recommended.items}
        return Report(
            history_events=len(events) - len(live),
            live_events=len(live),
            all_lists=sum((await ends(settings, settings.topics.lists)).values()),
            new_videos=len(new),
            new_videos_listed=len(new & listed),
            live=outcome(events, self._arrivals, live_from),
            next_videos=next_videos(events, self._arrivals, live_from, self._log.most_watched),
            dead_letters=sum((await ends(settings, settings.topics.dead_letters)).values()),
            duplicates=int(after.get("mtgr_duplicates_total", 0.0)),
            users_in_batch=users / batches if batches else 0.0,
            daemon_exit_code=exit_code,
        )

    async def _until(
        self, daemon: DaemonProcess, reached: Callable[[], bool], within: float, state: str
    ) -> None:
        """Wait for the daemon; raises ChildFailed if it ends or takes too long, Abort on Ctrl-C."""
        deadline = monotonic() + within
        while not await asyncio.to_thread(reached):
            if self._stopping.is_set():
                raise click.Abort
            if monotonic() > deadline:
                raise daemon.child.failure(f"is not {state} after {within:g} s")
            if (code := daemon.child.exit_code) is not None:
                raise daemon.child.failure(f"ended with exit code {code}")
            await asyncio.sleep(_POLL_SECONDS)

    async def _delete_topics(self) -> None:
        with contextlib.suppress(KafkaError, TimeoutError):  # a broker that is gone has taken them along
            async with asyncio.timeout(_SETTLE_SECONDS):
                admin = AIOKafkaAdminClient(**client_options(self._settings.kafka))
                await admin.start()
                try:
                    await admin.delete_topics([topic.name for topic in wanted_topics(self._settings)])
                finally:
                    await admin.close()

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)


def _is_idle(metrics: Mapping[str, float], events: int) -> bool:
    """Whether so many events have been read and nobody is owed a list."""
    counted = ("mtgr_events_total", "mtgr_duplicates_total", "mtgr_dead_letters_total")
    read = sum(metrics.get(name, 0.0) for name in counted)
    return (
        read >= events and not metrics.get("mtgr_owed_users") and not metrics.get("mtgr_in_flight_requests")
    )


def _bunches(events: Sequence[Event]) -> Iterator[Sequence[Event]]:
    for first in range(0, len(events), _BUNCH_EVENTS):
        yield events[first : first + _BUNCH_EVENTS]
