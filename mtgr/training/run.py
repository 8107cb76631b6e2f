"""A run's directory: the figures of a training, and the state from which it can be resumed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mtgr.errors import InputError
from mtgr.training.metrics import METRICS_FILE
from mtgr.training.options import MAY_CHANGE, TrainingOptions
from mtgr.training.validation import Accuracy

STATE_FILE: Final = "state.json"


class Best(Struct, frozen=True):
    """The evaluation whose weights are kept."""

    step: int
    epoch: float
    accuracy: Accuracy


class Kept(Struct, frozen=True):
    """A good checkpoint: the step whose weights it has, and where it lies."""

    step: int
    where: str


class TrainingState(Struct, kw_only=True):
    """Where a training stands between two steps; its tensors lie beside it, in `tensors`."""

    fingerprint: str
    """Of the data and the model config: it must be the same to go on."""
    options: TrainingOptions
    """But for `mtgr.training.options.MAY_CHANGE` they must be the same to go on."""
    step: int = 0
    epoch: int = 0
    place: int = 0
    """Batches of the epoch that are done."""
    seconds: float = 0.0
    tokens: int = 0
    padded_tokens: int = 0
    """Tokens there would have been if each batch were padded to its longest window."""
    loss: float | None = None
    """The running mean."""
    best: Best | None = None
    kept: Kept | None = None
    """The last one."""
    evaluated: int = 0
    """Step of the last evaluation."""
    waited: int = 0
    """Evaluations since the best one that patience counts."""
    tensors: str = ""


_decoder: Final = msgspec.json.Decoder(TrainingState, strict=True)


class RunDirectory:
    """Holds metrics.jsonl and, while a training can be resumed, state.json and a safetensors file."""

    def __init__(self, path: Path) -> None:
        self.path: Final = path

    def make(self) -> None:
        """Make the directory, where there is none; InputError if it cannot be made."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be made: {error.strerror}") from None

    @property
    def metrics(self) -> Path:
        """The figures, line by line."""
        return self.path / METRICS_FILE

    def save(self, state: TrainingState, tensors: Mapping[str, Tensor]) -> None:
        """Replace the state; whatever cuts this off, the one before it stays whole."""
        state.tensors = f"state-{state.step}.safetensors"
        work = self.path / f".{state.tensors}"
        save_file(
            {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, work
        )
        _sync(work)
        work.rename(self.path / state.tensors)
        work = self.path / f".{STATE_FILE}"
        work.write_bytes(msgspec.json.format(msgspec.json.encode(state)) + b"\n")
        _sync(work)
        work.rename(self.path / STATE_FILE)
        self._remove(but=state.tensors)

    def load(self, fingerprint: str, options: TrainingOptions) -> tuple[TrainingState, dict[str, Tensor]]:
        """The state as it was saved, with these options to go on with.

        InputError if there is none, or it is another training's, naming the option that differs, or damaged.
        """
        path = self.path / STATE_FILE
        try:
            state = _decoder.decode(path.read_bytes())
        except FileNotFoundError:
            raise InputError(
                f"{path}: there is none, so there is nothing to resume: the training had not come to "
                "its first save, or has ended"
            ) from None
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: is no training state: {error}") from None
        for name in TrainingOptions.__struct_fields__:
            before, now = _written(state.options, name), _written(options, name)
            if before != now and name not in MAY_CHANGE:
                raise InputError(
                    f"{path}: is the state of another training: the option {name} was {before} and is {now}; "
                    f"{', '.join(MAY_CHANGE)} are all that may change"
                )
        if state.fingerprint != fingerprint:
            raise InputError(
                f"{path}: is the state of another training: events, attributes, split and model config must be "
                "as they were"
            )
        state.options = options
        try:
            return state, load_file(self.path / state.tensors)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{self.path / state.tensors}: cannot be read: {error}") from None

    def clear(self) -> None:
        """Drop the state, of a training that has ended; the figures stay."""
        (self.path / STATE_FILE).unlink(missing_ok=True)
        self._remove(but=None)

    def _remove(self, but: str | None) -> None:
        for file in self.path.glob("state-*.safetensors"):
            if file.name != but:
                file.unlink()


def _written(options: TrainingOptions, name: str) -> str:
    """An option's value as one gives it to `train --option`."""
    return msgspec.json.encode(getattr(options, name), order="sorted").decode().strip('"')


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
