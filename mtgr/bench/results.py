"""Records put in order: the newest of each kind counts, so that a run can be repeated in part."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from mtgr.bench.cases import Case
from mtgr.bench.records import (
    Ceilings,
    Device,
    DeviceTime,
    Environment,
    Finished,
    Layer,
    Load,
    Memory,
    Missing,
    Record,
    Row,
    Setting,
    Split,
    Started,
    System,
)

_Kind = TypeVar("_Kind")


class Results:
    """What runs found out, the newest of each kind."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._records: dict[tuple[Any, ...], Record] = {}
        self.environments: list[Environment] = []
        for record in records:
            if isinstance(record, Environment):
                self.environments.append(record)
            if isinstance(record, Row):
                setting = record.setting
                self._records.pop(
                    _part_key(setting.device, setting.preset, f"{record.system} {record.case}"), None
                )
            key = _key(record)
            self._records.pop(key, None)
            self._records[key] = record

    def all(self, kind: type[_Kind]) -> Iterator[_Kind]:
        """Those of one kind, in the order in which they were found."""
        return (record for record in self._records.values() if isinstance(record, kind))

    def environment(self, device: Device) -> Environment | None:
        """Of the newest run on a device."""
        return next((one for one in reversed(self.environments) if one.device == device), None)

    def ceilings(self, device: Device) -> Ceilings | None:
        """Of a device, as measured last."""
        return next((one for one in self.all(Ceilings) if one.device == device), None)

    def settings(self, device: Device) -> list[Setting]:
        """Models, number formats and options that there are rows of, in the order in which they were measured."""
        found: list[Setting] = []
        for row in self.all(Row):
            if row.setting.device == device and row.setting not in found:
                found.append(row.setting)
        return found

    def row(self, setting: Setting, system: System, case: Case) -> Row | None:
        """One system on one case."""
        return self._get(Row, setting, system, case)

    def cases(self, setting: Setting) -> list[Case]:
        """Cases that any system was measured on: fresh ones first, few users first."""
        found = {row.case for row in self.all(Row) if row.setting == setting}
        return sorted(found, key=lambda case: (case.cached, case.events * case.users))

    def device_time(self, setting: Setting, system: System, case: Case) -> DeviceTime | None:
        """What a profiler saw of one system on one case."""
        return self._get(DeviceTime, setting, system, case)

    def split(self, setting: Setting, case: Case) -> Split | None:
        """Where the time of one case goes."""
        return self._get(Split, setting, case)

    def memory(self, setting: Setting, system: System) -> Memory | None:
        """What a system held."""
        return self._get(Memory, setting, system)

    def load(self, setting: Setting, system: System) -> Load | None:
        """What a system did under load."""
        return self._get(Load, setting, system)

    def started(self, setting: Setting) -> list[Started]:
        """Systems that came up, and how they were run."""
        return [one for one in self.all(Started) if one.setting == setting]

    def layers(self, device: Device) -> list[Layer]:
        """Layers, in the order in which they were measured."""
        return [one for one in self.all(Layer) if one.device == device]

    def missing(self, device: Device) -> list[Missing]:
        """What was asked for and is nowhere."""
        return [one for one in self.all(Missing) if one.device == device]

    def _get(self, kind: type[_Kind], setting: Setting, *of: Any) -> _Kind | None:
        found = self._records.get((kind, _setting_key(setting), *of))
        assert found is None or isinstance(found, kind)
        return found


def _setting_key(setting: Setting) -> tuple[Any, ...]:
    return (setting.device, setting.preset, setting.dtype, repr(sorted(setting.options.items())))


def _part_key(device: Device, preset: str, what: str) -> tuple[Any, ...]:
    return (Missing, device, preset, what)


def _key(record: Record) -> tuple[Any, ...]:
    match record:
        case Row() | DeviceTime():
            return (type(record), _setting_key(record.setting), record.system, record.case)
        case Split():
            return (Split, _setting_key(record.setting), record.case)
        case Load() | Memory():
            return (type(record), _setting_key(record.setting), record.system)
        case Started():
            return (Started, _setting_key(record.setting), record.system, record.description)
        case Layer():
            return (Layer, record.device, record.dtype, record.name, record.length)
        case Finished() | Missing():
            return _part_key(record.device, record.preset, record.what)
        case _:
            return (type(record), record.device)
