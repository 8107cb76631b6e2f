"""`python -m mtgr.evaluation.quality`: compute the runs that are missing, then write docs/quality.md."""

from __future__ import annotations

import functools
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import click
from rich.console import Console

from mtgr.errors import InputError
from mtgr.evaluation.baselines.launch import check_environment
from mtgr.evaluation.quality.baselines import baselines_of, read_searched, run_baseline_systems, seeds_of
from mtgr.evaluation.quality.data_sets import DATA_SETS, data_set
from mtgr.evaluation.quality.jobs import Device, Task, run_task
from mtgr.evaluation.quality.prepared import prepare, read_prepared
from mtgr.evaluation.quality.rendering import BASELINES, render
from mtgr.evaluation.quality.runs import read_runs, run_path, save_run
from mtgr.evaluation.quality.variants import OURS, VARIANTS


class Wanted(NamedTuple):
    """What was asked for."""

    names: Sequence[str]
    systems: Sequence[str]
    seeds: Sequence[int]
    work: Path
    device: Device
    jobs: int
    search: bool
    fresh: bool

    def lacks(self, name: str, system: str, seed: int) -> bool:
        """Whether a run is still to be computed."""
        return self.fresh or not run_path(self.work, name, system, seed).exists()

    def prepared(self, name: str) -> Path:
        """Where a data set is kept once it is read."""
        return self.work.parent / "quality-data" / f"{name}.npz"


@click.command()
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=Path("../shared/data"),
    show_default=True,
    help="The directory with the data sets' folders.",
)
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    default=Path(".run/quality"),
    show_default=True,
    help="Where the runs are kept.",
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("docs/quality.md"), show_default=True)
@click.option(
    "--only", "names", multiple=True, type=click.Choice(list(DATA_SETS)), help="Data sets.  [default: all]"
)
@click.option(
    "--systems",
    multiple=True,
    type=click.Choice([*VARIANTS, *BASELINES]),
    help="Systems.  [default: ours and the baselines]",
)
@click.option("--ablations", is_flag=True, help="Our recipes with one thing changed, too.")
@click.option(
    "--seeds", default="0,1,2", show_default=True, help="Of ours and of the baselines that are trained."
)
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Trainings at once.")
@click.option("--search", is_flag=True, help="Search the baselines' settings again on the validation part.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--fresh", is_flag=True, help="Compute runs that are there already again.")
@click.option("--render-only", is_flag=True, help="Compute nothing.")
def main(
    data: Path,
    work: Path,
    out: Path,
    names: tuple[str, ...],
    systems: tuple[str, ...],
    ablations: bool,
    seeds: str,
    jobs: int,
    device: Device,
    search: bool,
    fresh: bool,
    render_only: bool,
) -> None:
    """Compute the runs that are missing, and write the page."""
    console = Console(stderr=True, highlight=False)
    chosen = systems or (*(VARIANTS if ablations else (OURS,)), *BASELINES)
    if not render_only:
        try:
            numbers = [int(seed) for seed in seeds.split(",")]
        except ValueError:
            hint = f"{seeds!r} should be whole numbers, such as 0,1,2"
            raise click.BadParameter(hint, param_hint="--seeds") from None
        for name in names or DATA_SETS:
            console.print(f"{name}: reading")
            prepare(data_set(name), data, work.parent / "quality-data", fresh=fresh)
        wanted = Wanted(names or tuple(DATA_SETS), chosen, numbers, work, device, jobs, search, fresh)
        _check_baselines(wanted)
        _run_all(list(_missing(wanted)), work, jobs, console)
        _run_baselines(wanted, console)
    page = render(read_runs(work), read_searched())
    out.write_text(page)
    console.print(f"wrote {out}")


def _check_baselines(wanted: Wanted) -> None:
    """InputError if baselines are to be fitted and their environment is not there: before the work, not after."""
    if any(True for _ in _missing_baselines(wanted)):
        try:
            check_environment()
        except InputError as error:
            raise InputError(f"{error}, and --systems {OURS} does without") from None


def _missing(wanted: Wanted) -> Iterator[Task]:
    """The runs of ours that are to be computed: the recipes with all seeds first, then the variants."""
    threads = max(1, (os.cpu_count() or 1) // wanted.jobs)
    for system in (name for name in VARIANTS if name in wanted.systems):
        for seed in wanted.seeds:
            for name in wanted.names:
                if VARIANTS[system].changes(data_set(name)) and wanted.lacks(name, system, seed):
                    yield Task(wanted.prepared(name), name, system, seed, wanted.device, threads)


def _missing_baselines(wanted: Wanted) -> Iterator[tuple[str, list[str]]]:
    """Data set -> the baselines of which some seed is to be fitted."""
    chosen = [name for name in BASELINES if name in wanted.systems]
    for name in wanted.names:
        lacking = [
            system
            for system in baselines_of(data_set(name), chosen)
            if any(wanted.lacks(name, system, seed) for seed in seeds_of(system, wanted.seeds))
        ]
        if lacking:
            yield name, lacking


def _run_baselines(wanted: Wanted, console: Console) -> None:
    for name, systems in _missing_baselines(wanted):
        fits = wanted.work.parent / "quality-baselines" / name
        if wanted.fresh:
            shutil.rmtree(fits, ignore_errors=True)
        console.print(f"{name}: fitting {', '.join(systems)}")
        runs = run_baseline_systems(
            data_set(name),
            read_prepared(wanted.prepared(name)),
            systems,
            wanted.seeds,
            work=fits,
            device=wanted.device,
            jobs=wanted.jobs,
            search=wanted.search,
            on_event=functools.partial(_tell_baseline, console),
        )
        for run in runs:
            save_run(wanted.work, run)
            console.print(
                f"{name} {run.system} seed {run.seed}: HR@10 {run.hit_rate:.4f}, fitted in {run.seconds:,.0f} s"
            )


def _tell_baseline(console: Console, event: dict[str, Any]) -> None:
    told = event.get("validation") or event
    if event["event"] in ("epoch", "tried") and "ndcg@10" in told:
        settings = ", ".join(f"{key} {value}" for key, value in event["settings"].items())
        place = f"epoch {event['epoch']}" if event["event"] == "epoch" else "tried"
        console.print(
            f"  {event['model']} seed {event['seed']} {place}: validation NDCG@10 {told['ndcg@10']:.4f} ({settings})"
        )


def _run_all(tasks: Sequence[Task], work: Path, jobs: int, console: Console) -> None:
    began = time.monotonic()
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(run_task, task): task for task in tasks}
        for place, done in enumerate(as_completed(waiting), start=1):
            task = waiting[done]
            run = done.result()
            save_run(work, run)
            console.print(
                f"{place} of {len(tasks)} after {time.monotonic() - began:,.0f} s: {task.data_set} {task.system} "
                f"seed {task.seed}: HR@10 {run.hit_rate:.4f} in {run.seconds:,.0f} s"
            )


if __name__ == "__main__":
    try:
        main(standalone_mode=False)
    except (click.ClickException, InputError) as error:
        message = error.format_message() if isinstance(error, click.ClickException) else str(error)
        raise SystemExit(f"quality: {message}") from None
