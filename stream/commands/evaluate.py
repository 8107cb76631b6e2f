"""`mtgr-stream evaluate`: how good a checkpoint's lists are on an event log."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, get_args

import click

from mtgr.attributes import pack_attributes
from mtgr.checkpoint import Checkpoint, open_checkpoint
from mtgr.datasets import parse_mapping
from mtgr.errors import EngineFailed
from mtgr.evaluation.baselines import MODELS
from mtgr.evaluation.learnt import learnt_cases
from mtgr.evaluation.protocol import LeaveOneOut, Protocol, TimeSplit
from mtgr.evaluation.rankings import OnProgress
from mtgr.evaluation.report import EvaluationReport, save_report
from mtgr.evaluation.run import CheckpointEvaluation, EvaluationOptions, Lists, examples
from mtgr.evaluation.targets import Target
from mtgr.learnt_part import LearntPart
from mtgr.requests import NewVideo
from mtgr.serving.options import EngineOptions
from stream.consoles import counting_bar, table_console
from stream.observability import configure_logging
from stream.settings import LogSettings
from stream.tools.attribute_options import attributes_of, user_list_option, video_list_option
from stream.tools.engine_options import engine_options
from stream.tools.evaluation_table import (
    accuracy_table,
    difference_lines,
    head_table,
    list_table,
    unjudged_lines,
)
from stream.tools.event_log_options import mapping_option, skip_invalid_option
from stream.tools.event_logs import read_log
from stream.tools.training_arguments import moment

_PIPE_COLUMNS: Final = 200
_DEFAULTS: Final = EvaluationOptions()


@click.command()
@click.option(
    "--checkpoint",
    "directory",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIRECTORY",
    help="Directory of the checkpoint.",
)
@click.option(
    "--events", "files", multiple=True, required=True, type=click.Path(path_type=Path), metavar="FILE",
    help="An event log, in any format that train reads; more files by more --events.",
)  # fmt: skip
@click.argument("more_files", nargs=-1, type=click.Path(path_type=Path), metavar="[FILE]...")
@mapping_option
@skip_invalid_option
@click.option(
    "--videos", type=click.Path(path_type=Path), metavar="FILE",
    help="Attributes of videos; those that the model was not trained with join its catalog.",
)  # fmt: skip
@video_list_option
@click.option(
    "--users", type=click.Path(path_type=Path), metavar="FILE",
    help="Attributes of users; a profile in the log replaces them.",
)  # fmt: skip
@user_list_option
@click.option(
    "--split", type=click.Choice(["leave-one-out", "time"]), default="leave-one-out", show_default=True,
    help="Test each user's last target, or the first at or after --cut.",
)  # fmt: skip
@click.option(
    "--cut", callback=moment, metavar="TIME", help="Where --split time cuts, such as 2022-05-06T00:00+08:00."
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
    "--k", "ks", multiple=True, type=click.IntRange(min=1), default=_DEFAULTS.ks, show_default=True,
    help="A list length; more by more --k.",
)  # fmt: skip
@click.option(
    "--lists", type=click.Choice(get_args(Lists)), default=_DEFAULTS.lists, show_default=True,
    help="Who makes the lists; both also compares them, and ends with exit code 1 where they differ.",
)  # fmt: skip
@click.option(
    "--baselines", "all_baselines", is_flag=True,
    help="Fit RecTools' baselines on the same split, in the environment that `make baselines` makes.",
)  # fmt: skip
@click.option(
    "--baseline", "some_baselines", multiple=True, type=click.Choice(MODELS),
    help="Only this one; more by more --baseline.",
)  # fmt: skip
@engine_options
@click.option(
    "--cold-items", type=click.IntRange(min=0), default=_DEFAULTS.cold_items, show_default=True,
    help="Show videos apart that fewer users know.",
)  # fmt: skip
@click.option(
    "--cold-users", type=click.IntRange(min=0), default=_DEFAULTS.cold_users, show_default=True,
    help="Show users apart with fewer events.",
)  # fmt: skip
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=_DEFAULTS.seed,
    show_default=True,
    help="Seed of the bootstrap and the baselines.",
)
@click.option(
    "--json", "out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Write all figures, with each user's ranks.",
)  # fmt: skip
def command(
    directory: Path,
    files: tuple[Path, ...],
    more_files: tuple[Path, ...],
    mapping: tuple[str, ...],
    skip_invalid: bool,
    videos: Path | None,
    video_lists: dict[str, str],
    users: Path | None,
    user_lists: dict[str, str],
    split: str,
    cut: int | None,
    target: Target,
    histories: str,
    include_seen: bool,
    ks: tuple[int, ...],
    lists: Lists,
    all_baselines: bool,
    some_baselines: tuple[str, ...],
    engine: EngineOptions,
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
    if out is not None and not os.access(out.absolute().parent, os.W_OK):
        raise click.BadParameter(f"{out.absolute().parent} is no writable directory.", param_hint="--json")
    configure_logging(LogSettings(level="warning"))
    columns = parse_mapping(mapping) if mapping else None
    options = EvaluationOptions(
        ks=ks,
        lists=lists,
        cold_items=cold_items,
        cold_users=cold_users,
        seed=seed,
        engine=engine,
        baselines=tuple(dict.fromkeys(some_baselines)) or (MODELS if all_baselines else ()),
        times=columns is None or columns.time is not None,
    )
    checkpoint = open_checkpoint(directory)
    described = attributes_of(videos, video_lists, "videos")
    new_videos = [NewVideo(video, pack_attributes(attributes)) for video, attributes in described.items()]
    known = attributes_of(users, user_lists, "users")
    log = read_log([*files, *more_files], columns, known, skip_invalid=skip_invalid)
    prepared = CheckpointEvaluation(checkpoint, log, protocol, options, new_videos)
    _tell(prepared, checkpoint, protocol, videos)
    try:
        report = prepared.run(_progress)
    except EngineFailed as error:
        raise click.ClickException(str(error)) from None
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


def _tell(
    prepared: CheckpointEvaluation, checkpoint: Checkpoint, protocol: Protocol, videos: Path | None
) -> None:
    """Say what the figures alone would not tell."""
    config, added, evaluation = checkpoint.config, prepared.added, prepared.evaluation
    if videos is not None:
        refused = f"; no place for {len(added.refused):,} more (spare_items is {config.spare_items})"
        _say(
            f"{videos}: new videos that join the catalog of {config.n_items:,}: {added.added:,}"
            f"{refused if added.refused else ''}"
        )
    if evaluation.missing_targets:
        _say(
            f"{evaluation.missing_targets:,} of the {len(evaluation.cases):,} targets are not in the catalog of "
            f"{checkpoint.directory}, such as {examples(evaluation.missing_videos)}: they count as misses"
        )
    if checkpoint.learnt and (learnt := learnt_cases(checkpoint.learnt, protocol, evaluation.cases)):
        _say(
            f"{learnt:,} of the {len(evaluation.cases):,} targets are no later than what {checkpoint.directory} was "
            f"trained on ({_described(checkpoint.learnt)}): figures of what was learnt look better than they are; "
            "train with the same --split, --cut and --target"
        )
    if config.ranking and not prepared.judges_heads:
        _say("the ranking heads are judged by what users were shown after a moment: --split time")


def _described(learnt: LearntPart) -> str:
    cut = (
        ""
        if learnt.cut_ms is None
        else f" --cut {datetime.fromtimestamp(learnt.cut_ms / 1000, UTC).isoformat()}"
    )
    seen = " --include-seen" if learnt.include_seen else ""
    return f"--split {learnt.split}{cut} --target {learnt.target}{seen}"


@contextmanager
def _progress(name: str, cases: int) -> Iterator[OnProgress]:
    """A bar on a terminal, nothing elsewhere: what is waited for is told by the tables."""
    with counting_bar() as bar:
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
    unjudged = unjudged_lines(report.heads)
    if len(unjudged) < len(report.heads):
        console.print(head_table(report.heads), highlight=False)
    for line in (*unjudged, *difference_lines(report)):
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
