"""What is told of a training when it has ended."""

from __future__ import annotations

from typing import Final

import click
from rich.table import Table

from mtgr.evaluation.targets import Target
from mtgr.training.run import RunDirectory
from mtgr.training.trainer import Trained
from mtgr.training.validation import Accuracy
from stream.consoles import table_console

_ENDINGS: Final = {
    "epochs": "",
    "patience": "; ended as NDCG@10 got no better",
    "time": "; ended as the time was up",
}

_HELP: Final = {
    "epochs": "more --epochs",
    "patience": "more --patience, or a lower --lr,",
    "time": "more --max-seconds",
}


def _no_better(model: Accuracy, popularity: Accuracy) -> bool:
    return model.ndcg <= popularity.ndcg or model.hit_rate < popularity.hit_rate


def print_report(trained: Trained, target: Target, checkpoint: str, run: RunDirectory) -> None:
    """Print what was learnt, what it cost, and how good it is beside what most users know; where that is no better,
    say so on standard error.
    """
    console = table_console(160)
    best = "" if trained.best is None else f"; kept: after epoch {trained.best.epoch:.1f}"

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    say(
        f"trained on {trained.learnt_events:,} of {trained.events:,} events of {trained.users:,} users and "
        f"{len(trained.catalog):,} videos: {trained.epochs:.1f} epochs, {trained.steps:,} steps, "
        f"{trained.seconds:.0f} s{_ENDINGS[trained.ending]}{best}"
    )
    say(
        f"{trained.tokens:,} tokens, joined; padded to the longest of each batch they would have been "
        f"{trained.padded_tokens:,} ({trained.padded_tokens / trained.tokens:.1f} times as many)"
    )
    if trained.accuracy is not None and trained.popularity is not None:
        noun = "next new video" if target == "watch" else "next long view"
        table = Table(box=None, header_style="bold", pad_edge=False)
        table.add_column(f"{noun} of {trained.accuracy.cases:,} users ({trained.held_out})")
        table.add_column("HR@10", justify="right")
        table.add_column("NDCG@10", justify="right")
        for label, accuracy in (("this model", trained.accuracy), ("known to most", trained.popularity)):
            table.add_row(label, f"{accuracy.hit_rate:.4f}", f"{accuracy.ndcg:.4f}")
        console.print(table, highlight=False)
        if _no_better(trained.accuracy, trained.popularity):
            click.echo(
                f"on what was held out the model is no better than what is known to most, after {trained.steps:,} "
                f"steps: {_HELP[trained.ending]} would help, or more events",
                err=True,
            )
    say(f"checkpoint: {checkpoint}")
    say(f"curves: mtgr-stream plot {run.path}")
