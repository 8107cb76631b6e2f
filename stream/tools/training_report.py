"""What is told of a training when it has ended."""

from __future__ import annotations

from typing import Final

from rich.table import Table

from mtgr.evaluation.targets import Target
from mtgr.training.run import RunDirectory
from mtgr.training.trainer import Trained
from stream.consoles import table_console

_ENDINGS: Final = {
    "epochs": "",
    "patience": "; ended as NDCG@10 got no better",
    "time": "; ended as the time was up",
}


def print_report(trained: Trained, target: Target, checkpoint: str, run: RunDirectory) -> None:
    """Print what was learnt, what it cost, and how good it is beside what most users know."""
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
    say(f"checkpoint: {checkpoint}")
    say(f"curves: mtgr-stream plot {run.path}")
