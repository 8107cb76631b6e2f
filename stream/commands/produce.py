"""`mtgr-stream produce`: send an event log to Kafka."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Final

import click
import structlog
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from mtgr.datasets import ColumnMapping, SkippedRecords, parse_mapping, read_events
from mtgr.datasets.wire_log import decode_lines
from schemas.attributes import Attributes
from schemas.codecs import JSON, MESSAGEPACK, ContentType
from schemas.events import Event
from schemas.videos import Video
from stream.kafka import quieten
from stream.numbers import FiniteFloatRange
from stream.observability import configure_logging
from stream.settings import Settings, settings_options
from stream.tools.attribute_options import attributes_of, video_list_option
from stream.tools.event_log_options import mapping_option, skip_invalid_option
from stream.tools.pacing import LogPace, Pace, RatePace, Unpaced
from stream.tools.producer import EventProducer, SendFailed, Sent
from stream.tools.resumption import Position
from stream.tools.video_producer import send_videos

log = structlog.get_logger(__name__)

_BUNCH_EVENTS = 2_000
_PIPE_BYTES = 1 << 16
_LOG_SECONDS = 5.0
_CONTENT_TYPES: Final[dict[str, ContentType]] = {"json": JSON, "msgpack": MESSAGEPACK}


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path), metavar="[FILE]...")
@settings_options
@click.option(
    "--videos", type=click.Path(path_type=Path), metavar="FILE",
    help="Attributes of videos, sent to the videos topic before any event: CSV, Parquet or JSON lines, with the ids "
    "in a column video_id or the first one.",
)  # fmt: skip
@video_list_option
@click.option("--rate", type=FiniteFloatRange(min=0, min_open=True), help="Events a second, at most.")
@click.option("--log-speed", is_flag=True, help="Keep the gaps between events as they are in the log.")
@click.option(
    "--speedup",
    type=FiniteFloatRange(min=0, min_open=True),
    help="With --log-speed: so many times as fast.  [default: 1]",
)
@click.option("--limit", type=click.IntRange(min=0), help="Stop after so many events.")
@mapping_option
@skip_invalid_option
@click.option(
    "--format", "encoding", type=click.Choice(list(_CONTENT_TYPES)), default="json", show_default=True,
    help="How events are written.",
)  # fmt: skip
@click.option(
    "--resume",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File that keeps how far Kafka has acknowledged the log; run again with it to go on from there.",
)
def command(
    settings: Settings,
    files: tuple[Path, ...],
    videos: Path | None,
    video_lists: dict[str, str],
    rate: float | None,
    log_speed: bool,
    speedup: float | None,
    limit: int | None,
    mapping: tuple[str, ...],
    skip_invalid: bool,
    encoding: str,
    resume: Path | None,
) -> int:
    """Send the events of logs to the events topic, keyed by user, in time order, and videos to theirs.

    FILE is an event log in any format that train reads: JSON lines as on the wire, a table (CSV, Parquet) or a log
    of the field. - reads JSON lines from standard input. Ctrl-C stops after what has been begun.
    """
    if not files and videos is None:
        raise click.UsageError("name logs of events, or videos by --videos")
    if videos is not None and settings.topics.videos is None:
        raise click.UsageError("--videos needs a topic to send them to, such as --set topics.videos=videos")
    if rate is not None and log_speed:
        raise click.UsageError("--rate and --log-speed exclude each other: one pace at a time")
    if speedup is not None and not log_speed:
        raise click.UsageError("--speedup is for --log-speed")
    from_stdin = Path("-") in files
    if from_stdin and (len(files) > 1 or resume is not None or mapping):
        raise click.UsageError(
            "- (standard input) goes neither with other files, nor with --resume or --mapping"
        )
    columns = parse_mapping(mapping) if mapping else None
    configure_logging(settings.log)
    quieten()
    known = attributes_of(videos, video_lists, "videos")
    run = _Run(settings.topics.events, skip_invalid)
    if resume is not None:
        position = Position.start_of(files, settings.topics.events, columns).resumed_from(resume)
        position.save(resume, position.acknowledged)  # a file that cannot be written is better told now
        run.resume(resume, position)
    bunches = run.read_stdin() if from_stdin else run.read_files(files, columns)
    if limit is not None:
        bunches = _limited(bunches, limit)
    if videos is not None:
        _send_videos(settings, known, encoding)
        if not files:
            return 0
    pace: Pace = Unpaced()
    if rate is not None:
        pace = RatePace(rate)
    elif log_speed:
        pace = LogPace(speedup or 1.0)
    return asyncio.run(run.send(settings, pace, encoding, bunches))


def _send_videos(settings: Settings, known: Mapping[str, Attributes], encoding: str) -> None:
    topic = settings.topics.videos
    assert topic is not None
    videos = (Video(video_id=video_id, attributes=attributes) for video_id, attributes in known.items())
    begun = perf_counter()
    try:
        sent = asyncio.run(send_videos(settings.kafka, topic, videos, _CONTENT_TYPES[encoding]))
    except SendFailed as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{sent:,} videos to {topic} in {perf_counter() - begun:.1f} s")


class _Run:
    """One run of the command: what is read, what is shown of it, and what is kept of it."""

    def __init__(self, topic: str, skip_invalid: bool) -> None:
        self._topic = topic
        self._skipped = SkippedRecords() if skip_invalid else None
        self._resume: Path | None = None
        self._position: Position | None = None
        self._done_before = 0

    def resume(self, file: Path, position: Position) -> None:
        """Go on from the position, and keep it in the file."""
        self._resume, self._position = file, position
        self._done_before = position.acknowledged

    def read_files(self, files: Sequence[Path], mapping: ColumnMapping | None) -> Iterator[Sequence[Event]]:
        """Events of the files in bunches, without those that are done; InputError at once for a file that is none."""
        events = read_events(files, mapping, self._skipped)
        return _bunched(islice(events, self._done_before, None))

    def read_stdin(self) -> Iterator[Sequence[Event]]:
        """Events from standard input, in bunches as they come."""
        number, rest = 0, b""
        while chunk := sys.stdin.buffer.read1(_PIPE_BYTES):  # type: ignore[union-attr]
            *lines, rest = (rest + chunk).split(b"\n")
            yield from self._decoded(lines, number)
            number += len(lines)
        yield from self._decoded([rest], number)

    def _decoded(self, lines: list[bytes], before: int) -> Iterator[Sequence[Event]]:
        if events := list(decode_lines(lines, "standard input", self._skipped, first_line=before + 1)):
            yield events

    async def send(
        self, settings: Settings, pace: Pace, encoding: str, bunches: Iterator[Sequence[Event]]
    ) -> int:
        """Produce, show, keep; returns the exit code."""
        console = Console(stderr=True)
        shown = Progress(
            SpinnerColumn(),
            TextColumn("{task.fields[events]:,} events"),
            BarColumn(20),
            TextColumn("{task.fields[rate]:,.0f} events/s"),
            TextColumn("{task.fields[moment]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        task = shown.add_task("", total=None, events=0, rate=0.0, moment="")
        begun = logged = perf_counter()

        def on_progress(sent: Sent) -> None:
            nonlocal logged
            now = perf_counter()
            rate = sent.events / (now - begun)
            moment = f"log at {_moment(sent.timestamp_ms)}" if sent.events else ""
            shown.update(task, events=sent.events, rate=rate, moment=moment)
            if self._resume is not None and self._position is not None:
                self._position.save(self._resume, self._done_before + sent.acknowledged)
            if not console.is_terminal and now - logged >= _LOG_SECONDS:
                logged = now
                log.info(
                    "producing",
                    events=sent.events,
                    acknowledged=sent.acknowledged,
                    events_per_second=round(rate),
                    log_time=_moment(sent.timestamp_ms),
                )

        producer = EventProducer(settings.kafka, self._topic, pace, _CONTENT_TYPES[encoding], on_progress)
        stopped_by: list[int] = []
        running = asyncio.ensure_future(producer.run(bunches))

        def on_signal(number: int) -> None:
            stopped_by.append(number)
            if len(stopped_by) == 1 and producer.sent.events:
                producer.stop()
            else:  # for the second time, or while it still waits for a broker
                running.cancel()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, on_signal, number)
        try:
            with shown:
                await running
        except SendFailed as error:
            again = "" if self._resume is None else f"; run again to go on after event {self._done(producer)}"
            raise click.ClickException(f"{error}{again}") from None
        except asyncio.CancelledError:
            if not stopped_by:
                raise
        finally:
            if producer.sent.events:
                self._summarise(producer.sent, perf_counter() - begun)
        if not producer.sent.events and not stopped_by:
            before = f": all {self._done_before:,} events were sent before" if self._done_before else ""
            click.echo(f"nothing to send{before}")
        return 128 + stopped_by[0] if stopped_by else 0

    def _done(self, producer: EventProducer) -> int:
        return self._done_before + producer.sent.acknowledged

    def _summarise(self, sent: Sent, seconds: float) -> None:
        line = (
            f"{sent.acknowledged:,} events to {self._topic} in {seconds:.1f} s, "
            f"{sent.acknowledged / seconds:,.0f} events/s"
        )
        if self._done_before:
            line += f", after {self._done_before:,} sent before"
        if sent.events > sent.acknowledged:
            line += f", {sent.events - sent.acknowledged:,} more not acknowledged"
        if self._skipped and self._skipped.count:
            line += f", {self._skipped.count:,} invalid passed over, the first: {self._skipped.first}"
        click.echo(line)


def _moment(timestamp_ms: int) -> str:
    return datetime.fromtimestamp(timestamp_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _bunched(events: Iterator[Event]) -> Iterator[Sequence[Event]]:
    while bunch := list(islice(events, _BUNCH_EVENTS)):
        yield bunch


def _limited(bunches: Iterator[Sequence[Event]], limit: int) -> Iterator[Sequence[Event]]:
    while limit > 0 and (bunch := next(bunches, ())):
        yield bunch[:limit]
        limit -= len(bunch)
