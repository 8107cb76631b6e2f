"""What a run found out, one JSON object a line, written as it comes: a run that is cut short keeps what it has."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from mtgr.bench.cases import Case
from mtgr.errors import InputError

Device = Literal["cpu", "cuda"]
System = Literal["ours", "llama", "padded", "padded-compiled", "torch"]
"""Ours, vLLM's Llama of as many parameters, the model in padded PyTorch, that compiled, and the plain generator."""


HSTU: Final = "HSTU layer, paged"
TRANSFORMER: Final = "Transformer layer"
DENSE: Final = "HSTU layer, dense PyTorch"
"""Layers that are compared; `mtgr.bench.layers` has them."""


class Setting(Struct, frozen=True):
    """Of what a record tells; `options` are those of the engine that were given by hand."""

    device: Device
    preset: str
    dtype: str
    options: dict[str, Any] = {}


class Environment(Struct, frozen=True, tag="environment"):
    """Where and when a run was made, and by which command."""

    device: Device
    machine: str
    accelerator: str | None
    versions: dict[str, str]
    began: str
    """UTC, ISO 8601."""
    command: str
    commit: str | None = None
    """Of the code, abbreviated; `+` at its end where files differed from it, None where git does not know."""


class Ceilings(Struct, frozen=True, tag="ceilings"):
    """What the device did at most: bytes read plus written by a large copy, operations of a large matrix product."""

    device: Device
    dtype: str
    bytes_per_second: float
    operations_per_second: float


class Started(Struct, frozen=True, tag="started"):
    """A system that came up."""

    setting: Setting
    system: System
    parameters: int
    seconds: float
    description: str


class Row(Struct, frozen=True, tag="row"):
    """One system on one case: the time of each batch, and the fewest bytes and operations that it needs."""

    setting: Setting
    system: System
    case: Case
    milliseconds: list[float]
    bytes: int
    operations: int

    @property
    def median(self) -> float:
        """Milliseconds of a batch."""
        return statistics.median(self.milliseconds)


class Kernel(Struct, frozen=True):
    """What ran on the device under one name, for each batch."""

    name: str
    milliseconds: float
    calls: float


class DeviceTime(Struct, frozen=True, tag="device_time"):
    """How long a batch took while a profiler watched, and how much of that the device was busy."""

    setting: Setting
    system: System
    case: Case
    batch_ms: float
    busy_ms: float
    kernels: list[Kernel]


class Split(Struct, frozen=True, tag="split"):
    """Where the time of a batch of ours goes, in milliseconds that follow each other: medians, each by itself."""

    setting: Setting
    case: Case
    encode: float
    """From the call until the first steps are encoded."""
    send: float
    """Until the worker begins with them."""
    prepare: float
    """Until the worker has launched the first of the model; on a CPU, until it calls it."""
    compute: float
    """Until the worker has the last list."""
    answer: float
    """Until the caller has all."""

    @property
    def total(self) -> float:
        """Of the batch."""
        return self.encode + self.send + self.prepare + self.compute + self.answer


class Memory(Struct, frozen=True, tag="memory"):
    """The most bytes that a system's worker held in tensors, and of these its KV cache; on the CPU all it held."""

    setting: Setting
    system: System
    peak_bytes: int
    cache_bytes: int
    device_bytes: int
    """In use on the device at the end, by whatever."""


class Load(Struct, frozen=True, tag="load"):
    """Lists a second with the system never idle, and milliseconds from an event's arrival to its list at half that.

    Arrivals are a Poisson process that does not wait for lists.
    """

    setting: Setting
    system: System
    users: int
    events: int
    lists_per_second: float
    offered_per_second: float
    served_per_second: float
    p50_ms: float
    p99_ms: float
    arrivals: int


class Layer(Struct, frozen=True, tag="layer"):
    """One layer's forward at one length."""

    device: Device
    dtype: str
    name: str
    contents: str
    length: int
    sequences: int
    milliseconds: float
    bytes: int
    operations: int


class Finished(Struct, frozen=True, tag="finished"):
    """A part of a run that came to its end: it is no longer missing."""

    device: Device
    preset: str
    what: str
    seconds: float


class Missing(Struct, frozen=True, tag="missing"):
    """What a run was asked for and has not, and why."""

    device: Device
    preset: str
    what: str
    reason: str


Record = (
    Environment | Ceilings | Started | Row | DeviceTime | Split | Memory | Load | Layer | Finished | Missing
)

_decoder: Final = msgspec.json.Decoder(Record)


class RecordFile:
    """Appends records to a file, each whole and at once."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, record: Record) -> None:
        """Write a record down before anything else can go wrong."""
        line = msgspec.json.encode(record) + b"\n"
        with self.path.open("ab", buffering=0) as file:
            file.write(line)


def read_records(paths: Iterable[Path]) -> Iterator[Record]:
    """The records of some files, in order; InputError names the file and the line that is none."""
    for path in paths:
        try:
            lines = path.read_bytes().splitlines()
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None
        for number, line in enumerate(lines, 1):
            try:
                yield _decoder.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise InputError(f"{path}:{number}: no record of a benchmark: {error}") from None


def option_text(options: Mapping[str, Any]) -> str:
    """Engine options in words, for a table."""
    return ", ".join(f"{name} {value}" for name, value in options.items())
