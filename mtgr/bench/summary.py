"""A run in a few lines, for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mtgr.bench.records import Ceilings, DeviceTime, Layer, Load, Memory, Missing, Record, Row, Split, Started
from mtgr.bench.work import Work


def summary(records: Iterable[Record]) -> Iterator[str]:
    """One line for each record that says something of itself."""
    ceilings: Ceilings | None = None
    for record in records:
        match record:
            case Ceilings():
                ceilings = record
                yield (
                    f"ceilings: {record.bytes_per_second / 1e9:,.0f} GB/s, "
                    f"{record.operations_per_second / 1e9:,.0f} GFLOP/s"
                )
            case Started():
                yield f"{record.setting.preset} {record.system} up after {record.seconds:.0f} s: {record.description}"
            case Row():
                floor = ""
                if ceilings is not None:
                    floor = f", floor {Work(record.bytes, record.operations).floor_ms(ceilings):.2f} ms"
                yield (
                    f"{record.setting.preset} {record.system} {record.case}: {record.median:.2f} ms "
                    f"({min(record.milliseconds):.2f} to {max(record.milliseconds):.2f}){floor}"
                )
            case DeviceTime():
                longest = ", ".join(
                    f"{kernel.name[:40]} {kernel.milliseconds:.2f}" for kernel in record.kernels[:3]
                )
                yield (
                    f"{record.setting.preset} {record.system} {record.case}: device busy {record.busy_ms:.2f} of "
                    f"{record.batch_ms:.2f} ms; {longest}"
                )
            case Load():
                yield (
                    f"{record.setting.preset} {record.system}: {record.lists_per_second:,.0f} lists/s; at half "
                    f"p50 {record.p50_ms:.1f} ms, p99 {record.p99_ms:.1f} ms"
                )
            case Split():
                yield (
                    f"{record.setting.preset} ours {record.case}: encode {record.encode:.2f}, send {record.send:.2f}, "
                    f"prepare {record.prepare:.2f}, compute {record.compute:.2f}, answer {record.answer:.2f} ms"
                )
            case Memory():
                yield f"{record.setting.preset} {record.system}: peak {record.peak_bytes / 2**30:.1f} GiB"
            case Layer():
                yield f"{record.name} at {record.length}: {record.milliseconds:.3f} ms"
            case Missing():
                yield f"{record.preset} {record.what} is missing: {record.reason}"
            case _:
                continue
