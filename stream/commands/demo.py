"""`mtgr-stream demo`: the whole way on one machine, from a log to live lists."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from time import monotonic
from types import FrameType

import click
from rich.console import Console
from rich.table import Table

from stream.demo.kafka import local_kafka
from stream.demo.knowledge import knowledge_of, simulated_knowledge
from stream.demo.log import DemoLog, event_logs, prepare_log, simulated_log
from stream.demo.play import Play, Report
from stream.demo.processes import ChildFailed
from stream.kafka import quieten
from stream.numbers import FiniteFloatRange
from stream.observability import configure_logging
from stream.settings import LogSettings

_WORK = Path(".run")
_TRAINING_SECONDS = 90.0


@click.command()
@click.option(
    "--data",
    type=click.Path(exists=True, path_type=Path),
    help="An event log, or a folder of them: JSON lines as on the wire, or a KuaiRand log.",
)
@click.option("--simulate", is_flag=True, help="Simulated users in place of a log.")
@click.option(
    "--users", type=click.IntRange(min=1), default=2_000, show_default=True,
    help="Follow so many users, those with the longest histories.",
)  # fmt: skip
@click.option(
    "--seconds",
    type=FiniteFloatRange(min=1),
    default=75,
    show_default=True,
    help="Let events come live so long.",
)
@click.option(
    "--rate",
    type=FiniteFloatRange(min=0, min_open=True),
    help="Live events a second.  [default: what this machine can do, as far as the log reaches]",
)
def command(data: Path | None, simulate: bool, users: int, seconds: float, rate: float | None) -> int:
    """Train a small model on the first part of a log, then play the rest to the daemon and show its lists.

    Kafka is the one at KAFKA_BOOTSTRAP_SERVERS if that is set, else one that is started here. Everything
    written is in .run/ and gone at the end. Ctrl-C ends the live events and goes on to the summary.
    """
    if (data is None) != simulate:
        raise click.UsageError("name a log by --data PATH, or take --simulate")
    # ended in any way but SIGKILL, the demo takes down what it has started
    signal.signal(signal.SIGTERM, _interrupt)
    configure_logging(LogSettings(level="warning"))
    quieten()
    console = Console()
    began = monotonic()
    _WORK.mkdir(exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="demo-", dir=_WORK)).absolute()
    try:
        report = _demo(data, directory, users, seconds, rate, console)
    except ChildFailed as error:
        raise click.ClickException(f"{error}\n(files are kept in {directory})") from None
    except BaseException:
        shutil.rmtree(directory)
        raise
    shutil.rmtree(directory)
    console.print(summary_table(report))
    console.print(
        f"{monotonic() - began:.0f} s in all; the daemon ended with exit code {report.daemon_exit_code}"
    )
    return 0 if report.live is not None and report.daemon_exit_code == 0 else 1


def _demo(
    data: Path | None, directory: Path, users: int, seconds: float, rate: float | None, console: Console
) -> Report:
    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    with local_kafka(directory / "kafka", say) as servers:
        files = event_logs(data) if data else simulated_log(directory)
        known = knowledge_of(data) if data else simulated_knowledge()
        log = prepare_log(files, known, directory, users)
        say(_described(log, data))
        checkpoint = directory / "checkpoint"
        _train(log, directory, checkpoint)
        return asyncio.run(Play(servers, log, checkpoint, directory, console).run(seconds, rate))


def _described(log: DemoLog, data: Path | None) -> str:
    skipped = f" ({log.skipped:,} invalid lines passed over)" if log.skipped else ""
    known = log.known
    knowledge = (
        f", with what is known of {len(known.videos):,} videos and {len(known.profiles):,} users"
        if known.videos or known.profiles
        else ""
    )
    return (
        f"{data or 'simulated users'}: {log.training_events:,} events to train on{skipped}{knowledge}; "
        f"then {len(log.live):,} later ones of {log.users:,} users to come live"
    )


def _train(log: DemoLog, directory: Path, checkpoint: Path) -> None:
    command = [sys.executable, "-m", "stream", "train", "--preset", "tiny"]
    command += ["--out", str(checkpoint), "--max-seconds", str(_TRAINING_SECONDS)]
    # all of it is learnt but each user's last new video, on which the lists are tried
    command += ["--events", str(log.training), "--part", "known"]
    command += log.known.training_options(directory, len(log.new_videos))
    done = subprocess.run(command, check=False)
    if done.returncode:
        raise click.ClickException(f"training ended with exit code {done.returncode}")


def summary_table(report: Report) -> Table:
    """What the demo did and what it measured."""
    table = Table(box=None, show_header=False, title="Summary, counted in Kafka", title_justify="left")
    table.add_column(justify="right", style="bold", no_wrap=True)
    table.add_column()
    table.add_row(f"{report.live_events:,}", f"live events, after {report.history_events:,} of history")
    table.add_row(f"{report.duplicates:,}", "of all these were duplicates")
    live = report.live
    if live:
        table.add_row(f"{live.lists:,}", f"recommendation lists for the live events of {live.users:,} users")
    table.add_row(f"{report.all_lists:,}", "recommendation lists in all")
    table.add_row(f"{report.dead_letters:,}", "dead letters")
    if live:
        table.add_row(f"{live.median_ms:,.0f} ms", "from live event to list, median")
        table.add_row(f"{live.p99_ms:,.0f} ms", "from live event to list, 99th percentile")
        table.add_row(f"{report.users_in_batch:.1f}", "users in a batch, mean")
        table.add_row(f"{live.cached_share:.0%}", "of the users' events were in the engine's cache")
    if report.new_videos:
        table.add_row(
            f"{report.new_videos_listed:,}",
            f"of {report.new_videos:,} videos that were new to the model were recommended",
        )
    found = report.next_videos
    if found.moments:
        table.add_row(
            f"{found.listed / found.moments:.1%}",
            f"of {found.moments:,} times the next new video watched was in the list live then",
        )
        table.add_row(
            f"{found.popular / found.moments:.1%}",
            "of these times it was among as many of the most watched unseen ones",
        )
    return table


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
