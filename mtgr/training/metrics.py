"""The figures of a training as JSON lines: what each stretch of steps cost, and what each validation gave."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from mtgr.errors import InputError

METRICS_FILE: Final = "metrics.jsonl"


class StepMetrics(Struct, frozen=True, tag_field="kind", tag="steps"):
    """Means over the steps since the last such line; epoch counts from 0, with its part done."""

    step: int
    epoch: float
    seconds: float
    loss: float
    ranking_loss: float | None
    learning_rate: float
    gradient_norm: float
    tokens_per_second: float


class EvaluationMetrics(Struct, frozen=True, tag_field="kind", tag="evaluation"):
    """HR@10 and NDCG@10 of the held-out cases after a step."""

    step: int
    epoch: float
    seconds: float
    cases: int
    hit_rate: float
    ndcg: float


Metrics = StepMetrics | EvaluationMetrics
_decoder: Final = msgspec.json.Decoder(Metrics)


class MetricsFile:
    """Appends lines to a file; each is there for whoever follows it as soon as it is written."""

    def __init__(self, path: Path, *, after_step: int | None = None) -> None:
        """Begin anew, or go on after a step: lines beyond it, of a run that was cut off, are dropped."""
        self._path: Final = path
        kept = [] if after_step is None else [line for line in read_metrics(path) if line.step <= after_step]
        path.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in kept))

    def write(self, line: Metrics) -> None:
        """Append one line."""
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(line) + b"\n")


def read_metrics(path: str | os.PathLike[str]) -> Iterator[Metrics]:
    """The lines of a metrics file; InputError names the file and the line that is none."""
    file = Path(path)
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        try:
            yield _decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            if number == len(lines) and not line.endswith(b"}"):
                return  # a line that is being written
            raise InputError(f"{file}: line {number} holds no metrics: {error}") from None
