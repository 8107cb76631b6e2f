"""`python -m stream.bench`: run the benchmarks on this machine and print their tables."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec
import torch
from rich.console import Console
from rich.table import Table

from mtgr.bench.machine import machine
from mtgr.catalog import Catalog
from mtgr.checkpoint import save_checkpoint
from mtgr.errors import InputError
from mtgr.model.mtgr import MTGR
from mtgr.presets import PRESETS
from stream.bench import engine, fold, lists, memory, restart, state
from stream.bench.environment import Bench
from stream.bench.page import RELIABILITY, circumstances, write_section
from stream.bench.rivals import comparison
from stream.demo.kafka import local_kafka
from stream.kafka import quieten

_VIDEOS = 10_000
_FEED_RATE = 12_000  # events a second, above what any generator serves one by one
_COLUMNS = 120  # the tables', also where there is no terminal
_KINDS = ("vllm", "torch")
_PARTS = ("engine", "fold", "lists", "memory", "restart", "rivals", "state")


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice(_PARTS))
@click.option("--repeats", default=3, show_default=True, help="Runs of each row; the medians are shown.")
@click.option("--events", default=400_000, show_default=True, help="Events of a fold run.")
@click.option("--rival-events", default=800_000, show_default=True, help="Events of a rivals run.")
@click.option("--users", default=1_000, show_default=True, help="Users of a lists or restart run.")
@click.option(
    "--seconds", default=15.0, show_default=True, help="Measured time of a lists or restart run, each phase."
)
@click.option("--state-users", default=100_000, show_default=True, help="Users of the memory and state runs.")
@click.option(
    "--state-events", default=2_000_000, show_default=True, help="Events of the memory and state runs."
)
@click.option("--restart-rate", default=100.0, show_default=True, help="Events a second of a restart run.")
@click.option(
    "--write", is_flag=True, help=f"Put what fold, restart, rivals and state measure into {RELIABILITY}."
)
def main(
    parts: tuple[str, ...],
    repeats: int,
    events: int,
    rival_events: int,
    users: int,
    seconds: float,
    state_users: int,
    state_events: int,
    restart_rate: float,
    write: bool,
) -> None:
    """Measure the engine beside plain torch, and the daemon as it is run: a process of its own, on a real broker.

    All PARTS where none is named.
    """
    user_events, rest = divmod(state_events, state_users)
    if rest or not user_events:
        raise click.UsageError(
            f"--state-events is {state_events} and --state-users {state_users}: every user has as many events"
        )
    console = Console(width=_COLUMNS)
    quieten()
    console.print(f"machine: {machine()}")
    work = Path(".run").absolute()
    work.mkdir(exist_ok=True)
    wanted = parts or _PARTS
    if "engine" in wanted:
        console.print(engine.table(engine.run(work / "bench" / "cpu.jsonl")))
    if not set(wanted) - {"engine"}:
        return
    with tempfile.TemporaryDirectory(prefix="bench-", dir=work) as scratch:
        directory = Path(scratch)
        with local_kafka(directory / "kafka", console.print) as servers:
            bench = Bench(servers, directory)
            checkpoint = _checkpoint(directory)
            if "fold" in wanted:
                results = fold.run_all(bench, checkpoint, repeats=repeats, events=events)
                console.print(
                    _table("Fold + state + changelog + commit, one core", fold.COLUMNS, fold.rows(results))
                )
                console.print(f"exactly once against at least once: {'; '.join(fold.costs(results))}")
                if write:
                    write_section(RELIABILITY, "fold", fold.section(results, circumstances(), events))
            if "rivals" in wanted:
                runs = comparison.run(
                    bench,
                    checkpoint,
                    repeats=repeats,
                    events=rival_events,
                    out=work / "bench" / "rivals.jsonl",
                )
                console.print(
                    _table("The same job, one core each", comparison.COLUMNS, comparison.rows(runs))
                )
                console.print(comparison.verdict(runs))
                if write:
                    write_section(
                        RELIABILITY, "rivals", comparison.section(runs, circumstances(), rival_events)
                    )
            if "lists" in wanted:
                console.print(_lists_table(bench, checkpoint, repeats, users, seconds))
            if "restart" in wanted:
                with restart.engine(checkpoint, directory) as url:
                    restarts = [
                        restart.run(bench, url, mode, users=users, rate=restart_rate, seconds=seconds)
                        for mode in restart.MODES
                    ]
                for one in restarts:
                    console.print(_facts_table("Rolling restart of three daemons", restart.facts(one)))
                if write:
                    write_section(RELIABILITY, "restart", restart.section(restarts, circumstances()))
            if "state" in wanted:
                result = state.run(bench, checkpoint, users=state_users, user_events=user_events)
                console.print(_facts_table("State at size", state.facts(result)))
                if write:
                    write_section(RELIABILITY, "state", state.section(result, circumstances()))
            if "memory" in wanted:
                console.print(
                    _memory_table(memory.run(bench, checkpoint, users=state_users, events=state_events))
                )


def _checkpoint(directory: Path) -> Path:
    """The tiny preset with random weights: what it recommends is no matter, what it costs is the same."""
    torch.manual_seed(0)
    config = msgspec.structs.replace(PRESETS["tiny"], n_items=_VIDEOS)
    catalog = Catalog([f"video-{number}" for number in range(_VIDEOS)], config.unknown_buckets)
    return save_checkpoint(directory / "tiny", "tiny", config, catalog, MTGR(config).state_dict()).directory


def _lists_table(bench: Bench, checkpoint: Path, repeats: int, users: int, seconds: float) -> Table:
    table = Table(title=f"Event to list, tiny preset, {users:,} users, {_VIDEOS:,} videos, lists of 10")
    for column in (
        "generator",
        "lists/s",
        "runs, lists/s",
        "at half: lists/s",
        "p50 ms",
        "p99 ms",
        "mean batch",
        "cached tokens",
    ):
        table.add_column(column, justify="right")
    runs: dict[str, list[lists.ListsResult]] = {kind: [] for kind in _KINDS}
    for _ in range(repeats):
        for kind in _KINDS:  # in turn, so that both meet the same noise
            run = lists.run(
                bench, checkpoint, kind, users=users, videos=_VIDEOS, feed_rate=_FEED_RATE, seconds=seconds
            )
            runs[kind].append(run)
    for kind, rows in runs.items():
        table.add_row(
            kind,
            f"{statistics.median(row.lists_per_second for row in rows):,.0f}",
            " ".join(f"{row.lists_per_second:,.0f}" for row in rows),
            f"{statistics.median(row.half_rate for row in rows):,.0f}",
            f"{statistics.median(row.p50_ms for row in rows):,.0f}",
            f"{statistics.median(row.p99_ms for row in rows):,.0f}",
            f"{statistics.median(row.mean_batch for row in rows):.1f}",
            f"{statistics.median(row.cached_share for row in rows):.0%}",
        )
    rates = {kind: statistics.median(row.lists_per_second for row in rows) for kind, rows in runs.items()}
    table.caption = f"engine against plain torch: {rates['vllm'] / rates['torch']:.2f}x the lists/s"
    return table


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def _facts_table(title: str, facts: Sequence[tuple[str, str]]) -> Table:
    table = Table(title=title, show_header=False)
    for what, measured in facts:
        table.add_row(what, measured)
    return table


def _memory_table(result: memory.MemoryResult) -> Table:
    table = Table(title=f"Memory of the daemon, {result.users:,} users, {result.events:,} events in state")
    for column in ("when ready", "with the users", "of that cached sequences", "cache ceiling", "on disk"):
        table.add_column(column, justify="right")
    table.add_row(
        *(
            f"{value / 2**20:,.0f} MiB"
            for value in (
                result.at_start,
                result.with_users,
                result.cached,
                result.cache_ceiling,
                result.on_disk,
            )
        )
    )
    return table


if __name__ == "__main__":
    try:
        main(standalone_mode=False)
    except (click.ClickException, InputError) as error:
        raise SystemExit(f"bench: {error}") from None
