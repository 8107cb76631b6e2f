"""`mtgr-stream evaluate`: how good a checkpoint's lists are on an event log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Final, Literal, get_args

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mtgr.attributes import pack_attributes
from mtgr.checkpoint import Checkpoint, open_checkpoint
from mtgr.datasets import SkippedRecords, parse_mapping, read_events
from mtgr.datasets.attributes import read_attributes
from mtgr.errors import EngineFailed
from mtgr.evaluation.evaluation import Evaluation, SystemResult
from mtgr.evaluation.popularity import PopularityScorer
from mtgr.evaluation.profiles import ProfileTimeline
from mtgr.evaluation.protocol import LeaveOneOut, Part, Protocol, TimeSplit, parse_moment
from mtgr.evaluation.rankings import OnProgress, Rankings, Scorer, rank_all
from mtgr.evaluation.report import EvaluationReport, LogFacts, save_report
from mtgr.evaluation.served import ReferenceScorer, compare_lists
from mtgr.evaluation.targets import Target
from mtgr.reference import ReferenceRecommender
from mtgr.requests import NewVideo
from mtgr.serving.options import EngineOptions
from mtgr.training.log import EventLog
from schemas.lists import ModelVersion
from stream.consoles import table_console
from stream.numbers import FiniteFloatRange
from stream.observability import configure_logging
from stream.settings import LogSettings
from stream.tools.evaluation_table import accuracy_table, difference_lines, list_table

Lists = Literal["reference", "vllm", "both"]
Maker = Callable[[OnProgress], Rankings]

_REFERENCE: Final = "this model"
_VLLM: Final = "this model on vLLM"
_POPULARITY: Final = "most popular"
_PIPE_COLUMNS: Final = 200
_NEEDED: Final[tuple[Part, ...]] = ("test",)


def _moment(ctx: click.Context, param: click.Parameter, text: str | None) -> int | None:
    try:
        return None if text is None else parse_moment(text)
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is no ISO 8601 time, such as 2022-05-06T00:00+08:00.", ctx, param
        ) from None


@click.command()
@click.option(
    "--checkpoint", "directory", required=True, type=click.Path(path_type=Path), help="The model's directory."
)
@click.option(
    "--events", "files", multiple=True, required=True, type=click.Path(path_type=Path), metavar="FILE",
    help="An event log, in any format that train reads; more files by more --events.",
)  # fmt: skip
@click.argument("more_files", nargs=-1, type=click.Path(path_type=Path), metavar="[FILE]...")
@click.option(
    "--mapping", multiple=True, metavar="FIELD=COLUMN,...",
    help="Columns of a table, such as user=userId,video=movieId,time=timestamp,rating=rating.",
)  # fmt: skip
@click.option("--skip-invalid", is_flag=True, help="Pass over what is no event, and count it.")
@click.option(
    "--videos", type=click.Path(path_type=Path), metavar="FILE",
    help="Attributes of videos; those that the model was not trained with join its catalog.",
)  # fmt: skip
@click.option(
    "--split", type=click.Choice(["leave-one-out", "time"]), default="leave-one-out", show_default=True,
    help="Test each user's last target, or the first at or after --cut.",
)  # fmt: skip
@click.option(
    "--cut", callback=_moment, metavar="TIME", help="Where --split time cuts, such as 2022-05-06T00:00+08:00."
)
@click.option(
    "--target", type=click.Choice(get_args(Target)), default="watch", show_default=True,
    help="What is predicted; a long view is one of 18 seconds, or of the whole of a shorter video.",
)  # fmt: skip
@click.option(
    "--histories", type=click.Choice(["frozen", "live"]), default="frozen", show_default=True,
    help="With --split time: histories end at the cut, or go on to the target as the daemon's do.",
)  # fmt: skip
@click.option("--include-seen", is_flag=True, help="Rank what a user has seen too, and let it be a target.")
@click.option(
    "--k", "ks", multiple=True, type=click.IntRange(min=1), default=(5, 10), show_default=True,
    help="A list length; more by more --k.",
)  # fmt: skip
@click.option(
    "--lists", type=click.Choice(get_args(Lists)), default="reference", show_default=True,
    help="Who makes the lists; both also compares them, and ends with exit code 1 where they differ.",
)  # fmt: skip
@click.option(
    "--kv-cache-gib", type=FiniteFloatRange(0, min_open=True), default=1.0, show_default=True,
    help="Memory of vLLM's KV cache.",
)  # fmt: skip
@click.option(
    "--cold-items", type=click.IntRange(min=0), default=5, show_default=True,
    help="Show videos apart that fewer users know.",
)  # fmt: skip
@click.option(
    "--cold-users", type=click.IntRange(min=0), default=10, show_default=True,
    help="Show users apart with fewer events.",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the bootstrap.")
@click.option(
    "--json", "out", type=click.Path(path_type=Path, dir_okay=False), metavar="OUT",
    help="Write all figures, with each user's ranks.",
)  # fmt: skip
def command(
    directory: Path,
    files: tuple[Path, ...],
    more_files: tuple[Path, ...],
    mapping: tuple[str, ...],
    skip_invalid: bool,
    videos: Path | None,
    split: str,
    cut: int | None,
    target: Target,
    histories: str,
    include_seen: bool,
    ks: tuple[int, ...],
    lists: Lists,
    kv_cache_gib: float,
    cold_items: int,
    cold_users: int,
    seed: int,
    out: Path | None,
) -> int:
    """Rank the whole catalog for held-out videos of a log, and say how high they stand.

    Each figure comes with the bounds within which it lies with 95 % (bootstrap over users), beside that of
    recommending what most users know. For figures that mean something the model must have been trained with the
    same --split, --cut and --target.
    """
    protocol = _protocol(split, cut, target, histories, include_seen=include_seen)
    if include_seen and lists != "reference":
        raise click.UsageError("--include-seen needs --lists reference: vLLM leaves out what is seen")
    if videos is not None and lists != "reference":
        raise click.UsageError("--videos needs --lists reference")
    if out is not None and not out.absolute().parent.is_dir():
        raise click.BadParameter(f"{out.absolute().parent} is no directory.", param_hint="--json")
    configure_logging(LogSettings(level="warning"))
    checkpoint = open_checkpoint(directory)
    new_videos = _new_videos(videos)
    log, profiles = _read_log([*files, *more_files], mapping, skip_invalid=skip_invalid)
    parts = protocol.split(log, needs=_NEEDED)

    recommender = None if lists == "vllm" else _recommender(checkpoint, new_videos, videos)
    catalog = checkpoint.catalog.video_ids
    evaluation = Evaluation(parts, catalog, ks, cold_items=cold_items, cold_users=cold_users, seed=seed)
    if evaluation.missing_targets:
        _say(
            f"{evaluation.missing_targets:,} of the {len(parts.test):,} targets are not in the catalog of "
            f"{directory}: they count as misses"
        )
    makers: dict[str, Maker] = {}
    if recommender is not None:
        makers[_REFERENCE] = _by_reference(recommender, evaluation, profiles, exclude_seen=not include_seen)
    if lists != "reference":
        options = EngineOptions(checkpoint=directory, kv_cache_gib=kv_cache_gib)
        makers[_VLLM] = _by_vllm(options, checkpoint, evaluation, profiles)
    popularity = PopularityScorer(evaluation.popularity[: len(catalog)])
    makers[_POPULARITY] = partial(_full, evaluation, popularity, exclude_seen=not include_seen)

    made: dict[str, Rankings] = {}
    systems: list[SystemResult] = []
    for name, make in makers.items():
        began = monotonic()
        with _progress(name, len(evaluation.cases)) as on_progress:
            made[name] = make(on_progress)
        systems.append(evaluation.judge(name, made[name], monotonic() - began))
    report = EvaluationReport(
        model=ModelVersion(checkpoint.name, checkpoint.version),
        protocol=protocol,
        ks=evaluation.ks,
        seed=seed,
        cold_items=cold_items,
        cold_users=cold_users,
        log=LogFacts(
            users=len(log.histories),
            events=len(log),
            videos=len(evaluation.items),
            known_events=sum(len(history) for history in parts.known.values()),
        ),
        catalog=len(catalog),
        missing_targets=evaluation.missing_targets,
        cases=evaluation.table,
        systems=systems,
        differences={
            other.name: evaluation.difference(systems[0], other)
            for other in systems[1:]
            if other.name != _VLLM
        },
        comparison=compare_lists(made[_VLLM], made[_REFERENCE]) if lists == "both" else None,
    )
    if out is not None:
        save_report(out, report)
    _print(report)
    return 1 if report.comparison is not None and report.comparison.different else 0


def _protocol(split: str, cut: int | None, target: Target, histories: str, *, include_seen: bool) -> Protocol:
    if split == "time":
        if cut is None:
            raise click.UsageError("--split time needs --cut TIME, such as 2022-05-06T00:00+08:00")
        return TimeSplit(
            cut_ms=cut, target=target, exclude_seen=not include_seen, frozen=histories == "frozen"
        )
    if cut is not None:
        raise click.UsageError("--cut goes with --split time")
    if histories != "frozen":
        raise click.UsageError(
            "--histories goes with --split time: leave-one-out knows all before the target"
        )
    return LeaveOneOut(target=target, exclude_seen=not include_seen)


def _new_videos(path: Path | None) -> list[NewVideo]:
    if path is None:
        return []
    described = read_attributes(path)
    return [NewVideo(video, pack_attributes(attributes)) for video, attributes in described.items()]


def _read_log(
    files: list[Path], mapping: tuple[str, ...], *, skip_invalid: bool
) -> tuple[EventLog, ProfileTimeline]:
    skipped = SkippedRecords()
    profiles = ProfileTimeline()
    events = read_events(
        files, parse_mapping(mapping) if mapping else None, skipped if skip_invalid else None
    )
    log = EventLog.collect(profiles.taken_from(events))
    if skipped.count:
        _say(f"skipped {skipped.count} records that are no events, the first: {skipped.first}")
    return log, profiles


def _recommender(
    checkpoint: Checkpoint, new_videos: list[NewVideo], path: Path | None
) -> ReferenceRecommender:
    recommender = ReferenceRecommender(checkpoint)
    if path is not None:
        joined = recommender.add_videos(new_videos)
        places = (
            f"; no place for {len(joined.refused):,} more (spare_items is {checkpoint.config.spare_items})"
        )
        _say(
            f"{path}: new videos that join the catalog of {checkpoint.config.n_items:,}: {joined.added:,}"
            f"{places if joined.refused else ''}"
        )
    return recommender


def _by_reference(
    recommender: ReferenceRecommender,
    evaluation: Evaluation,
    profiles: ProfileTimeline,
    *,
    exclude_seen: bool,
) -> Maker:
    checkpoint = recommender.checkpoint
    scorer = ReferenceScorer(
        recommender, checkpoint.config, checkpoint.catalog, exclude_seen=exclude_seen, profiles=profiles
    )
    return partial(_full, evaluation, scorer, exclude_seen=exclude_seen)


def _by_vllm(
    options: EngineOptions, checkpoint: Checkpoint, evaluation: Evaluation, profiles: ProfileTimeline
) -> Maker:
    def make(on_progress: OnProgress) -> Rankings:
        from mtgr.evaluation.engine import rank_by_engine

        ranking = rank_by_engine(
            evaluation.cases,
            options,
            checkpoint,
            evaluation.items.index_of,
            evaluation.ks[-1],
            profiles=profiles,
            on_progress=on_progress,
        )
        try:
            return asyncio.run(ranking)
        except EngineFailed as error:
            raise click.ClickException(str(error)) from None

    return make


def _full(evaluation: Evaluation, scorer: Scorer, on_progress: OnProgress, *, exclude_seen: bool) -> Rankings:
    items = evaluation.items
    return rank_all(
        evaluation.cases,
        scorer,
        items.index_of,
        items.catalog_size,
        evaluation.ks[-1],
        exclude_seen=exclude_seen,
        on_progress=on_progress,
    )


@contextmanager
def _progress(name: str, cases: int) -> Iterator[OnProgress]:
    """A bar on a terminal, nothing elsewhere: what is waited for is told by the tables."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task(name, total=cases)
        yield lambda done: bar.update(task, completed=done)


def _print(report: EvaluationReport) -> None:
    console = table_console(_PIPE_COLUMNS)
    log = report.log
    console.print(
        f"{report.model.name} (version {report.model.version}) on {log.events:,} events of {log.users:,} users, "
        f"{log.known_events:,} of them before the test; {report.catalog:,} videos ranked",
        highlight=False,
    )
    console.print(accuracy_table(report), highlight=False)
    console.print(list_table(report), highlight=False)
    for line in difference_lines(report):
        console.print(line, highlight=False, markup=False)
    if report.comparison is not None:
        found = report.comparison
        console.print(
            f"vLLM and reference: {found.different:,} of {found.lists:,} lists differ, "
            f"scores by at most {found.largest_score_difference:.1e}",
            highlight=False,
        )


def _say(text: str) -> None:
    click.echo(text, err=True)
