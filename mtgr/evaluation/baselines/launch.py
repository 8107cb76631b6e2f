"""Hands a split to the baselines' own environment, and takes their lists back.

A task is a folder of Parquet files without the test's targets, so that nothing that runs there can see them.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct

from mtgr.errors import InputError
from mtgr.evaluation.protocol import Case, LeaveOneOut, Protocol, Split
from mtgr.evaluation.targets import Target, is_target
from mtgr.history import History

if TYPE_CHECKING:
    import polars as pl

MODELS: Final = ("popularity", "recent-popularity", "item-knn", "sasrec", "hstu")
FOLDER_VARIABLE: Final = "MTGR_BASELINES"
"""The environment variable that names another folder than the checkout's."""

_CHECKOUT: Final = Path(__file__).parents[3]
_FOLDER: Final = ".baselines"
_RUNNER: Final = Path(__file__).parent
_ERROR_LINES: Final = 5

OnEvent = Callable[[dict[str, Any]], None]
"""Told what the runner says: a settings candidate tried, an epoch done, a model fitted."""


class BaselineOptions(Struct, frozen=True, kw_only=True):
    """Which baselines are fitted, and how."""

    models: tuple[str, ...] = MODELS
    seeds: tuple[int, ...] = (0,)
    k: Annotated[int, Meta(ge=1)] = 50
    """Length of the lists."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    jobs: Annotated[int, Meta(ge=1)] = 1
    search: bool = False
    """Whether settings are searched on the validation cases; else the starting ones, or those found before."""
    fit_seconds: float | None = None
    """Longest training of one fit."""


class BaselineLists(Struct, frozen=True):
    """A fitted baseline: its lists by user, best first, its settings, and what fitting took.

    facts: all that the runner tells: besides these epochs, ending, validation, environment (device, versions) and date.
    """

    model: str
    seed: int
    seconds: float
    settings: dict[str, Any]
    device: str
    lists: dict[str, list[str]]
    facts: dict[str, Any]


def baselines_folder() -> Path:
    """Where `make baselines` puts the environment (`venv`), and where fits are kept: one place, whatever the working
    directory is.

    It is what `MTGR_BASELINES` names, else `.baselines` in the checkout; without one, in the working directory.
    """
    if named := os.environ.get(FOLDER_VARIABLE):
        return Path(named).absolute()
    root = _CHECKOUT if (_CHECKOUT / "pyproject.toml").is_file() else Path.cwd()
    return root / _FOLDER


def check_environment(environment: Path | None = None) -> Path:
    """The Python of the baselines' environment, by default the one in `baselines_folder`.

    InputError if it is not there, so that it is told before the work.
    """
    python = (environment or baselines_folder() / "venv").absolute() / "bin" / "python"
    if not python.exists():
        raise InputError(
            f"{python}: there is no environment for the baselines; `make baselines` makes it in the checkout, and "
            f"{FOLDER_VARIABLE} names the folder of one that is elsewhere"
        )
    return python


def write_task(directory: Path, split: Split, protocol: Protocol, *, times: bool) -> None:
    """Write a split as the runner reads it; times: whether timestamps are times and not only an order.

    With leave-one-out the models stop where the validation cases are predicted no better, as is usual; with a
    split by time the best settings learn the validation part too, for as many epochs as did best before.
    """
    import polars as pl  # it takes longer to import than all the rest

    directory.mkdir(parents=True, exist_ok=True)
    if isinstance(protocol, LeaveOneOut):
        _interactions(split.training, protocol.target).write_parquet(directory / "training.parquet")
    else:
        _interactions(split.known, protocol.target).write_parquet(directory / "training.parquet")
        _interactions(split.training, protocol.target).write_parquet(directory / "selection.parquet")
    validation = _cases(split.validation, protocol.target)
    targets = pl.Series("target", [case.video_id for case in split.validation], pl.String)
    validation.with_columns(targets).write_parquet(directory / "validation.parquet")
    _cases(split.test, protocol.target).write_parquet(directory / "test.parquet")
    facts = {"exclude_seen": protocol.exclude_seen, "times": times}
    (directory / "task.json").write_bytes(msgspec.json.encode(facts))


def run_baselines(
    task: Path,
    out: Path,
    options: BaselineOptions,
    on_event: OnEvent = lambda event: None,
    environment: Path | None = None,
) -> None:
    """Fit baselines on a task and write their lists to `out`; what is there already is not computed again.

    Raises InputError if the environment is not there, or the runner fails.
    """
    python = check_environment(environment)
    if unknown := [model for model in options.models if model not in MODELS]:
        raise InputError(f"baseline {unknown[0]!r} is not known; known are {', '.join(MODELS)}")
    command = [
        str(python), "-m", "runner", str(task.absolute()), str(out.absolute()),
        "--models", ",".join(options.models),
        "--seeds", ",".join(str(seed) for seed in options.seeds),
        "--k", str(options.k), "--device", options.device, "--jobs", str(options.jobs),
    ]  # fmt: skip
    if options.search:
        command.append("--search")
    if options.fit_seconds is not None:
        command += ["--fit-seconds", str(options.fit_seconds)]
    # nothing of this environment is to be found in that one
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    tail: list[str] = []
    with subprocess.Popen(
        command, cwd=_RUNNER, env=clean, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            try:
                event = msgspec.json.decode(line, type=dict[str, Any])
            except msgspec.DecodeError:
                tail = [*tail[1 - _ERROR_LINES :], line.rstrip()]
            else:
                on_event(event)
    if child.returncode:
        raise InputError(f"the baselines failed with exit code {child.returncode}: {' / '.join(tail)}")


def read_lists(out: Path, model: str, seed: int) -> BaselineLists:
    """The lists that a fitted baseline wrote; InputError if it wrote none."""
    import polars as pl

    path = out / f"{model}-{seed}.json"
    try:
        facts = msgspec.json.decode(path.read_bytes())
        table = pl.read_parquet(path.with_suffix(".parquet"))
    except (OSError, msgspec.DecodeError, pl.exceptions.PolarsError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    return BaselineLists(
        model=model,
        seed=seed,
        seconds=facts["seconds"]["fit"],
        settings=facts["settings"],
        device=facts["environment"]["device"],
        lists=dict(zip(table["user"].to_list(), table["items"].to_list(), strict=True)),
        facts=facts,
    )


def _interactions(histories: dict[str, History], target: Target) -> pl.DataFrame:
    """user, item, time_ms, weight: 1 for an event of the kind that is to be predicted, else 0."""
    import polars as pl

    parts = list(histories.values())
    counts = [len(history) for history in parts]
    return pl.DataFrame(
        {
            "user": np.repeat(np.array(list(histories), dtype=object), counts).tolist(),
            "item": [video for history in parts for video in history.video_ids],
            "time_ms": np.concatenate([history.records["timestamp_ms"] for history in parts]),
            "weight": np.concatenate([is_target(history, target) for history in parts]).astype(np.float64),
        },
        schema={"user": pl.String, "item": pl.String, "time_ms": pl.Int64, "weight": pl.Float64},
    )


def _cases(cases: Sequence[Case], target: Target) -> pl.DataFrame:
    import polars as pl

    def column(of: Callable[[History], Iterable[Any]]) -> list[list[Any]]:
        return [list(of(case.history)) for case in cases]

    return pl.DataFrame(
        {
            "user": [case.user_id for case in cases],
            "history": column(lambda history: history.video_ids),
            "times_ms": column(lambda history: history.records["timestamp_ms"].tolist()),
            "weights": column(lambda history: is_target(history, target).astype(np.float64).tolist()),
            "time_ms": [case.asked_ms for case in cases],
        },
        schema={
            "user": pl.String,
            "history": pl.List(pl.String),
            "times_ms": pl.List(pl.Int64),
            "weights": pl.List(pl.Float64),
            "time_ms": pl.Int64,
        },
    )
