"""`mtgr-stream train`: train a model from event logs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, get_args

import click
from rich.console import Console
from torch import Tensor

from mtgr.catalog import Catalog
from mtgr.checkpoint import check_target, save_checkpoint
from mtgr.config import ModelConfig
from mtgr.datasets import SkippedRecords
from mtgr.evaluation.targets import Target
from mtgr.presets import PRESETS, preset, recipe
from mtgr.training.feedback import FEEDBACK
from mtgr.training.hooks import Hooks, Progress, TrainingStopped
from mtgr.training.log import EventLog
from mtgr.training.options import MAY_CHANGE, TrainingOptions
from mtgr.training.run import RunDirectory
from mtgr.training.trainer import TrainingInputs, choose_device, train
from stream.numbers import FiniteFloatRange
from stream.tools.attribute_options import attributes_of, user_list_option, video_list_option
from stream.tools.event_log_options import mapping_option, skip_invalid_option
from stream.tools.training_arguments import Negatives, assignments, feedback_weights, moment, names
from stream.tools.training_inputs import (
    events_of,
    learnt_part,
    protocol_of,
    with_changes,
    with_user_attributes,
    with_video_attributes,
)
from stream.tools.training_progress import Interruption, TrainingBar
from stream.tools.training_report import print_report

_DEFAULTS: Final = TrainingOptions()


class _Stopped(click.ClickException):
    exit_code = 130


@click.command()
@click.option(
    "--events", "files", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
    help="An event log: JSON lines as on the wire, a table (CSV, Parquet) or a log of the field; more files by "
    "more --events, or as FILE.",
)  # fmt: skip
@click.argument("more_files", nargs=-1, type=click.Path(path_type=Path), metavar="[FILE]...")
@click.option(
    "--topic", metavar="NAME",
    help="Learn from this topic of events instead. The broker is that of --bootstrap-servers, --config or the "
    "environment (MTGR_STREAM__KAFKA__...).",
)  # fmt: skip
@click.option("--bootstrap-servers", metavar="HOST:PORT,...", help="With --topic: brokers to ask first.")
@click.option(
    "--config", "settings_file", type=click.Path(path_type=Path), metavar="FILE",
    help="With --topic: the daemon's settings, of which [kafka] counts.",
)  # fmt: skip
@mapping_option
@skip_invalid_option
@click.option(
    "--videos", type=click.Path(path_type=Path), metavar="FILE",
    help="Attributes of videos, which are in the catalog then, watched or not: CSV, Parquet or JSON.",
)  # fmt: skip
@video_list_option
@click.option("--video-categories", callback=names, metavar="NAME,...", help="Texts the model takes of them.")
@click.option("--video-numbers", callback=names, metavar="NAME,...", help="Numbers the model takes of them.")
@click.option(
    "--users", type=click.Path(path_type=Path), metavar="FILE",
    help="Attributes of users; profiles in the log come before them.",
)  # fmt: skip
@user_list_option
@click.option("--user-categories", callback=names, metavar="NAME,...", help="Texts the model takes of them.")
@click.option("--user-numbers", callback=names, metavar="NAME,...", help="Numbers the model takes of them.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Directory of the checkpoint."
)  # fmt: skip
@click.option(
    "--run", "run_directory", type=click.Path(path_type=Path, file_okay=False), metavar="DIRECTORY",
    help="Where metrics.jsonl goes, and what --resume needs.  [default: OUT.training]",
)  # fmt: skip
@click.option(
    "--resume", is_flag=True,
    help="Go on where a training with the same events and options was stopped; only these may be others now: "
    f"{', '.join(MAY_CHANGE)}.",
)  # fmt: skip
@click.option(
    "--preset", "preset_name", default="tiny", show_default=True,
    help=f"The model, and how it is trained: one of {', '.join(PRESETS)}.",
)  # fmt: skip
@click.option(
    "--set", "changes", multiple=True, callback=assignments, metavar="KEY=VALUE",
    help="A field of the preset's model config, such as n_layers=4.",
)  # fmt: skip
@click.option(
    "--spare-items", type=click.IntRange(min=0), help="Places for videos that join while it is served."
)
@click.option("--name", help="The model's name in the lists it makes.  [default: the preset's]")
@click.option(
    "--split", type=click.Choice(["leave-one-out", "time", "none"]), default="leave-one-out", show_default=True,
    help="What is held out: each user's last two targets, what is after --cut, or nothing.",
)  # fmt: skip
@click.option(
    "--cut", callback=moment, metavar="TIME", help="Where --split time cuts, such as 2022-05-06T00:00+08:00."
)
@click.option(
    "--validation-days", type=FiniteFloatRange(min=0, min_open=True), metavar="DAYS",
    help="With --split time: validate by what comes so long before --cut.  [default: 1]",
)  # fmt: skip
@click.option(
    "--part", type=click.Choice(["training", "known"]),
    help="Learn what is before the validation cases and stop by these, or all before the test cases.",
)  # fmt: skip
@click.option(
    "--target", type=click.Choice(get_args(Target)),
    help="What is predicted; a long view is one of 18 seconds, or of the whole of a shorter video.",
)  # fmt: skip
@click.option("--include-seen", is_flag=True, help="Let a video that a user has seen be a target again.")
@click.option(
    "--epochs", type=click.IntRange(min=1),
    help=f"At most.  [default: the preset's, else {_DEFAULTS.epochs_of(_DEFAULTS.min_steps)}, or as many as make "
    f"{_DEFAULTS.min_steps:,} steps of a small log]",
)  # fmt: skip
@click.option(
    "--patience", type=click.IntRange(min=1),
    help=f"Validations without a better NDCG@10, after {_DEFAULTS.min_steps:,} steps, that end training.  "
    f"[default: {_DEFAULTS.patience}]",
)  # fmt: skip
@click.option(
    "--max-seconds", type=FiniteFloatRange(min=1), help="Be done in this time, with fewer epochs if need be."
)
@click.option(
    "--batch-tokens", type=click.IntRange(min=1),
    help="Tokens of a step.  [default: four sequences of the preset's full length]",
)  # fmt: skip
@click.option(
    "--lr", "learning_rate", type=FiniteFloatRange(min=0, min_open=True), metavar="RATE",
    help="Learning rate after the warm-up.  [default: 0.004 at width 64, less for wider models]",
)  # fmt: skip
@click.option(
    "--negatives", type=Negatives(), metavar="N|all",
    help=f"Videos that a target is told apart from at each step.  [default: {_DEFAULTS.negatives}]",
)  # fmt: skip
@click.option(
    "--weight", "weights", multiple=True, callback=feedback_weights, metavar="FEEDBACK=WEIGHT",
    help=f"How much a target counts by what the user did with it, such as skip=0.2: {', '.join(FEEDBACK)}.",
)  # fmt: skip
@click.option(
    "--condition-on", "conditioned_on", multiple=True, type=click.Choice(FEEDBACK),
    callback=lambda context, parameter, kinds: kinds or None,
    help="Tell training which targets had this feedback, such as skip: they teach, but not to list them.",
)  # fmt: skip
@click.option(
    "--half-life-days", type=FiniteFloatRange(min=0, min_open=True), metavar="DAYS",
    help="Let targets count half as much for each such time before the end.",
)  # fmt: skip
@click.option("--dropout", type=FiniteFloatRange(min=0, max=1, max_open=True), metavar="SHARE",
    help="Share of the numbers between layers that a step leaves out.  [default: the preset's]",
)  # fmt: skip
@click.option("--weight-decay", type=FiniteFloatRange(min=0), metavar="RATE",
    help="How fast weights shrink beside what they learn.  [default: the preset's]",
)  # fmt: skip
@click.option(
    "--average-decay", type=FiniteFloatRange(min=0, max=1, min_open=True, max_open=True), metavar="DECAY",
    help="Validate and keep a moving average of the weights, such as one with the decay 0.999.",
)  # fmt: skip
@click.option(
    "--option", "others", multiple=True, callback=assignments, metavar="KEY=VALUE",
    help="Any other training option, such as schedule=cosine or cold_share=0.1.",
)  # fmt: skip
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    help=f"Seed of first weights, batches and negatives.  [default: {_DEFAULTS.seed}]",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    help=f"Where to train.  [default: {_DEFAULTS.device}]",
)
@click.option(
    "--precision", type=click.Choice(["auto", "float32", "bfloat16"]),
    help="What the layers are computed in; auto is bfloat16 on CUDA.  [default: auto]",
)  # fmt: skip
def command(
    files: tuple[Path, ...],
    more_files: tuple[Path, ...],
    topic: str | None,
    bootstrap_servers: str | None,
    settings_file: Path | None,
    mapping: tuple[str, ...],
    skip_invalid: bool,
    videos: Path | None,
    video_lists: dict[str, str],
    video_categories: tuple[str, ...],
    video_numbers: tuple[str, ...],
    users: Path | None,
    user_lists: dict[str, str],
    user_categories: tuple[str, ...],
    user_numbers: tuple[str, ...],
    out: Path,
    run_directory: Path | None,
    resume: bool,
    preset_name: str,
    changes: dict[str, Any],
    spare_items: int | None,
    name: str | None,
    split: str,
    cut: int | None,
    validation_days: float | None,
    include_seen: bool,
    others: dict[str, Any],
    **flags: Any,
) -> None:
    """Train a model to predict what users go on to watch, and write its checkpoint.

    Lists leave seen videos out, so that what is learnt and tested is the next video that is new to its user. At
    the end the model's HR@10 and NDCG@10 on what was held out stand beside those of recommending to everybody
    what most users know. Ctrl-C saves where training stands; --resume goes on from there.
    """
    began = time.monotonic()
    # told before the work, not after it
    check_target(out)
    options = recipe(preset_name).replace("--option", **others)
    given = {key: value for key, value in flags.items() if value is not None and value != {}}
    options = options.replace("options", **given)
    choose_device(options.device)
    protocol = protocol_of(split, cut, validation_days, options.target, include_seen=include_seen)
    if bool(files or more_files) == (topic is not None):
        raise click.UsageError("name event logs by --events FILE, or one topic by --topic NAME")
    if "n_items" in changes:
        raise click.UsageError("--set n_items: it follows from the events")
    config = with_changes(preset(preset_name), changes, spare_items)
    described = attributes_of(videos, video_lists, "videos")
    known = attributes_of(users, user_lists, "users")
    config = with_video_attributes(config, described, video_categories, video_numbers, videos)

    skipped = SkippedRecords()
    console = Console(stderr=True)
    run = RunDirectory(run_directory or out.with_name(f"{out.name}.training"))
    with TrainingBar(console) as bar, Interruption() as interruption:
        log = EventLog.collect(
            events_of(
                [*files, *more_files], topic, bootstrap_servers, settings_file, mapping,
                skipped if skip_invalid else None,
            )
        )  # fmt: skip
        config = with_user_attributes(config, log, known, user_categories, user_numbers, users)
        if options.max_seconds is not None:
            left = max(1.0, options.max_seconds - (time.monotonic() - began))
            options = options.replace(max_seconds=left)

        learnt = learnt_part(protocol, options, log, include_seen=include_seen)

        def on_step(progress: Progress) -> None:
            interruption.in_steps = True
            bar.show(progress)

        def keep(config: ModelConfig, catalog: Catalog, weights: Mapping[str, Tensor]) -> str:
            save_checkpoint(out, name or preset_name, config, catalog, weights, learnt=learnt)
            return str(out)

        inputs = TrainingInputs(
            events=log, config=config, options=options, protocol=protocol, videos=described, users=known
        )
        hooks = Hooks(on_step=on_step, stop=lambda: interruption.asked, keep=keep, run=run, resume=resume)
        try:
            trained = train(inputs, hooks)
        except TrainingStopped as stopped:
            raise _Stopped(str(stopped)) from None
    checkpoint = save_checkpoint(
        out, name or preset_name, trained.config, trained.catalog, trained.model.state_dict(), learnt=learnt
    )
    if skipped.count:
        click.echo(str(skipped), err=True)
    print_report(trained, options.target, f"{out} ({checkpoint.name}, version {checkpoint.version})", run)
