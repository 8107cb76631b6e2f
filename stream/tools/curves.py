"""The curves of trainings, drawn from their metrics."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mtgr.errors import InputError
from mtgr.training.metrics import METRICS_FILE, EvaluationMetrics, Metrics, StepMetrics, read_metrics

FORMATS: Final = (".png", ".svg", ".html")
_INCHES: Final = (11.0, 7.0)
_PAGE: Final = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
    "<style>body{{margin:0;font-family:sans-serif}}svg{{width:100%;height:auto}}</style>{drawing}</html>\n"
)


def find_run(path: Path) -> Path:
    """The metrics of a run: the file itself, its run directory, or that of a checkpoint; InputError if there are
    none.
    """
    if path.is_file():
        return path
    for place in (path / METRICS_FILE, path.with_name(f"{path.name}.training") / METRICS_FILE):
        if place.is_file():
            return place
    raise InputError(f"{path}: holds no {METRICS_FILE}; name a run's directory, such as that of train --run")


def read_runs(paths: Sequence[Path]) -> dict[str, list[Metrics]]:
    """The lines of each run by a name for it, the shortest end of its path that tells the runs apart."""
    files = [find_run(path).absolute() for path in paths]
    parts = [list(reversed(file.parts[:-1] if file.name == METRICS_FILE else file.parts)) for file in files]
    runs: dict[str, list[Metrics]] = {}
    for file, own in zip(files, parts, strict=True):
        length = 1
        while length < len(own) and sum(other[:length] == own[:length] for other in parts) > 1:
            length += 1
        lines = list(read_metrics(file))
        if not lines:
            raise InputError(f"{file}: holds no figures yet")
        runs["/".join(reversed(own[:length])).removesuffix(".training")] = lines
    return runs


def draw(runs: Mapping[str, Sequence[Metrics]]) -> Figure:
    """Loss, accuracy, learning rate and speed over the steps, a line for each run."""
    figure = Figure(_INCHES, layout="constrained")
    loss, accuracy, rate, speed = figure.subplots(2, 2, sharex=True).flat
    for number, (name, lines) in enumerate(runs.items()):
        steps = [line for line in lines if isinstance(line, StepMetrics)]
        judged = [line for line in lines if isinstance(line, EvaluationMetrics)]
        colour, made = f"C{number}", [line.step for line in steps]
        loss.plot(made, [line.loss for line in steps], color=colour, label=name)
        rate.plot(made, [line.learning_rate for line in steps], color=colour)
        speed.plot(made, [line.tokens_per_second for line in steps], color=colour)
        marks = [line.step for line in judged]
        accuracy.plot(marks, [line.hit_rate for line in judged], color=colour, linestyle="--", marker=".")
        accuracy.plot(marks, [line.ndcg for line in judged], color=colour, marker=".")
    _label(loss, "loss")
    _label(accuracy, "held out: NDCG@10, HR@10 dashed")
    _label(rate, "learning rate")
    _label(speed, "tokens a second")
    speed.set_ylim(bottom=0)
    for axes in (rate, speed):
        axes.set_xlabel("step")
    loss.legend()
    return figure


def save(figure: Figure, path: Path, title: str) -> None:
    """Write PNG, SVG or a page of HTML that needs nothing else; InputError for another name or a bad place."""
    if path.suffix not in FORMATS:
        raise InputError(f"{path}: should end in {', '.join(FORMATS)}, which say what is drawn")
    try:
        if path.suffix != ".html":
            figure.savefig(path)
            return
        text = StringIO()
        figure.savefig(text, format="svg")
        drawing = text.getvalue()
        path.write_text(
            _PAGE.format(title=html.escape(title), drawing=drawing[drawing.index("<svg") :]), encoding="utf-8"
        )
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None


def _label(axes: Axes, text: str) -> None:
    axes.set_title(text, fontsize="medium", loc="left")
    axes.grid(alpha=0.3)
