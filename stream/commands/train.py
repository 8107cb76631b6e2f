"""`mtgr-stream train`: train a model from event logs."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from mtgr.checkpoint import check_target, save_checkpoint
from mtgr.datasets import SkippedRecords, parse_mapping, read_events
from mtgr.presets import PRESETS, preset
from mtgr.training import loop
from mtgr.training.options import TrainingOptions
from mtgr.training.trainer import Trained, choose_device, train
from stream.consoles import table_console
from stream.numbers import FiniteFloatRange

_DEFAULTS: Final = TrainingOptions()


@click.command()
@click.option(
    "--events", "files", multiple=True, required=True, type=click.Path(path_type=Path), metavar="FILE",
    help="An event log: JSON lines as on the wire, CSV or a KuaiRand log; more files by more --events.",
)  # fmt: skip
@click.argument("more_files", nargs=-1, type=click.Path(path_type=Path), metavar="[FILE]...")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="The checkpoint's directory.",
)
@click.option(
    "--preset", "preset_name", default="tiny", show_default=True, help=f"One of {', '.join(PRESETS)}."
)
@click.option("--name", help="The model's name in the lists it makes.  [default: the preset's]")
@click.option(
    "--mapping", multiple=True, metavar="FIELD=COLUMN,...",
    help="Columns of a CSV log, such as user=userId,video=movieId,time=timestamp,rows_are=like.",
)  # fmt: skip
@click.option("--skip-invalid", is_flag=True, help="Pass over what is no event, and count it.")
@click.option("--epochs", type=click.IntRange(min=1), default=_DEFAULTS.epochs, show_default=True)
@click.option(
    "--max-seconds", type=FiniteFloatRange(min=1), help="Be done in this time, with fewer epochs if need be."
)
@click.option(
    "--batch-tokens", type=click.IntRange(min=1),
    help="Tokens of a step, padding included.  [default: four sequences of the preset's full length]",
)  # fmt: skip
@click.option(
    "--lr", type=FiniteFloatRange(min=0, min_open=True), metavar="RATE",
    help="Learning rate after the warm-up.  [default: 0.004 at width 64, less for wider models]",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=_DEFAULTS.seed, show_default=True)
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default=_DEFAULTS.device, show_default=True
)
def command(
    files: tuple[Path, ...],
    more_files: tuple[Path, ...],
    out: Path,
    preset_name: str,
    name: str | None,
    mapping: tuple[str, ...],
    skip_invalid: bool,
    epochs: int,
    max_seconds: float | None,
    batch_tokens: int | None,
    lr: float | None,
    seed: int,
    device: Literal["auto", "cpu", "cuda"],
) -> None:
    """Train a model to predict the next new video a user watches, and write its checkpoint.

    Each user's last new video is held out: at the end the model's HR@10 and NDCG@10 on them stand beside
    those of recommending the most watched videos to everybody.
    """
    config = preset(preset_name)
    # told before the work, not after it
    check_target(out)
    choose_device(device)
    options = TrainingOptions(
        epochs=epochs,
        batch_tokens=batch_tokens,
        learning_rate=lr,
        seed=seed,
        max_seconds=max_seconds,
        device=device,
    )
    skipped = SkippedRecords()
    events = read_events(
        [*files, *more_files],
        parse_mapping(mapping) if mapping else None,
        skipped if skip_invalid else None,
    )
    console = Console(stderr=True)
    with _Bar(console, epochs) as bar:
        trained = train(events, config, options, bar.show)
    checkpoint = save_checkpoint(
        out, name or preset_name, trained.config, trained.catalog, trained.model.state_dict()
    )
    if skipped.count:
        click.echo(
            f"skipped {skipped.count} records that are no events, the first: {skipped.first}", err=True
        )
    _report(trained, f"{out} ({checkpoint.name}, version {checkpoint.version})")


class _Bar:
    """The progress bar on a terminal; a line every tenth of the training elsewhere."""

    def __init__(self, console: Console, epochs: int) -> None:
        self._console = console
        self._shown = 0.0
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("reading events", total=None, facts="")

    def __enter__(self) -> _Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, progress: loop.Progress) -> None:
        """Show where training stands."""
        facts = f"loss {progress.loss:.3f}  {progress.tokens_per_second:,.0f} tokens/s"
        self._bar.update(self._task, description="training", total=1.0, completed=progress.done, facts=facts)
        if self._bar.disable and (progress.done >= self._shown + 0.1 or progress.done == 1):
            self._shown = progress.done
            self._console.print(
                f"{progress.done:4.0%}  step {progress.step}  {facts}  {progress.seconds_left:.0f} s left",
                highlight=False,
            )


def _report(trained: Trained, checkpoint: str) -> None:
    console = table_console(160)
    console.print(
        f"trained on {trained.events:,} events of {trained.users:,} users and {len(trained.catalog):,} videos: "
        f"{trained.epochs:.1f} epochs, {trained.steps:,} steps, {trained.seconds:.0f} s",
        highlight=False,
    )
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column(f"next new video of {trained.accuracy.users:,} users")
    table.add_column("HR@10", justify="right")
    table.add_column("NDCG@10", justify="right")
    for label, accuracy in (("this model", trained.accuracy), ("most watched", trained.popularity)):
        table.add_row(label, f"{accuracy.hit_rate:.4f}", f"{accuracy.ndcg:.4f}")
    console.print(table, highlight=False)
    console.print(f"checkpoint: {checkpoint}", highlight=False, soft_wrap=True)
