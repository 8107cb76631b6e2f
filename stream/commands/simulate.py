"""`mtgr-stream simulate`: write the events of simulated users."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import BinaryIO

import click
import msgspec
from msgspec.structs import replace

from mtgr.simulator import Simulation, describe_users, describe_videos, simulate
from stream.consoles import counting_bar

_DEFAULT = Simulation()
_BATCH_EVENTS = 4_096
_YEARS = range(1970, 2099)  # events of the year after still fit into their bounds


@click.command()
@click.option("--users", default=_DEFAULT.users, show_default=True, help="Users to simulate.")
@click.option("--videos", default=_DEFAULT.videos, show_default=True, help="Videos they choose from.")
@click.option("--events", default=_DEFAULT.events, show_default=True, help="Events to write.")
@click.option("--seed", default=_DEFAULT.seed, show_default=True, help="Equal seeds give equal events.")
@click.option(
    "--start",
    type=click.DateTime(),
    metavar="TIME",
    help="Time of the first session, UTC, such as 2024-01-01T18:00:00.  [default: 2024-01-01]",
)
@click.option("--profiles", is_flag=True, help="Begin with what is known of each user.")
@click.option(
    "--describe-videos", "described",
    type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Write what is known of the videos there, as JSON lines for produce --videos.",
)  # fmt: skip
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    default=Path("-"),
    help="File of JSON lines, compressed if it ends in .gz; - is standard output.  [default: -]",
)
def command(
    users: int,
    videos: int,
    events: int,
    seed: int,
    start: datetime | None,
    profiles: bool,
    described: Path | None,
    out: Path,
) -> None:
    """Write the events of simulated users, in time order, as JSON lines.

    The users have tastes that drift, come in sessions, follow series, and watch longer what they like; so a
    model trained on the events can do better than popularity.
    """
    simulation = Simulation(users=users, videos=videos, events=events, seed=seed)
    if start is not None:
        if start.year not in _YEARS:
            raise click.BadParameter(
                f"{start:%Y-%m-%d} is not of the years 1970 to 2098.", param_hint="--start"
            )
        simulation = replace(simulation, start_ms=int(start.replace(tzinfo=UTC).timestamp() * 1000))
    made = simulate(simulation)
    if described is not None:
        with _opened(described) as file:
            file.write(msgspec.json.Encoder().encode_lines(list(describe_videos(simulation))))
    begun = perf_counter()
    progress = counting_bar()
    encode = msgspec.json.Encoder().encode_lines
    with _opened(out) as file, progress:
        task = progress.add_task("events", total=events)
        if profiles:
            file.write(encode(list(describe_users(simulation))))
        batch = []
        for event in made:
            batch.append(event)
            if len(batch) == _BATCH_EVENTS:
                file.write(encode(batch))
                progress.advance(task, len(batch))
                batch.clear()
        file.write(encode(batch))
    seconds = perf_counter() - begun
    click.echo(f"{events:,} events in {seconds:.1f} s, {events / seconds:,.0f} events/s", err=True)


@contextmanager
def _opened(out: Path) -> Iterator[BinaryIO]:
    """The file to write to; it gets its name only once it is whole."""
    if str(out) == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    partial = out.with_name(f".{out.name}.partial")
    try:
        file = partial.open("wb")
    except OSError as error:
        raise click.BadParameter(f"{out} cannot be written: {error.strerror}") from None
    try:
        with file:
            if out.suffix == ".gz":
                # no name and time in it, so that equal simulations give equal files
                with gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=4, mtime=0) as packed:
                    yield packed  # type: ignore[misc]
            else:
                yield file
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
