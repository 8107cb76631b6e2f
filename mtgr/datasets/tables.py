"""Files of rows and columns, opened as one kind of lazy table: text with a separator, Parquet, JSON lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import polars as pl

from mtgr.datasets.separators import (
    find_separator,
    overlong_line,
    separator_name,
    split_line,
    unclosed_quote,
)
from mtgr.datasets.wire_log import read_lines
from mtgr.errors import InputError

PLACE: Final = "\x1fplace"  # no file has a column of this name, which an empty one is not safe from
FAULT: Final = "\x1ffault"
_RAW: Final = "\x1fraw"
_NO_SEPARATOR: Final = "\x1f"
_SAMPLED_LINES: Final = 20
_PARQUET: Final = b"PAR1"
_NO_FAULT: Final = pl.lit(None, pl.String).alias(FAULT)


class Table(NamedTuple):
    """Rows with the columns of the file, and two more: PLACE counts them as a person would, and FAULT says why
    one could not be read; it is null for the others.
    """

    path: Path
    rows: pl.LazyFrame
    names: Sequence[str]
    unit: str
    """What PLACE counts: line or row."""
    separator: str | None = None
    raw: str | None = None
    """A column of the row as it stands in the file, where the others are not the whole of it."""

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turn what polars says of a file that cannot be read into InputError."""
        try:
            yield
        except (pl.exceptions.PolarsError, OSError, EOFError) as error:
            raise InputError(f"{self.path}: {self._why(error)}") from None

    def _why(self, error: Exception) -> str:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        found = None
        if "found more fields" in reason and self.separator is not None:
            found = overlong_line(read_lines(self.path), self.separator, len(self.names))
        if found is not None:
            line, fields = found
            return (
                f"line {line}: has {fields} fields, where the first line has {len(self.names)}; is a separator "
                f"inside a field that is not quoted?"
            )
        if 'could not parse `"' in reason:
            line = unclosed_quote(read_lines(self.path))
            return (
                f'line {line}: a quote (") opens a field and nothing closes it: remove it, or write it twice'
            )
        if "utf-8" in reason.lower() or "utf8" in reason.lower():
            return "holds text that is not UTF-8; convert it, such as by iconv -f latin1 -t utf-8"
        return f"cannot be read as {'text with a separator' if self.separator else 'Parquet'}: {reason}"


def is_parquet(path: Path) -> bool:
    """Whether a file is Parquet, by its content."""
    try:
        with path.open("rb") as file:
            return file.read(len(_PARQUET)) == _PARQUET
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error}") from None


def open_parquet(path: Path) -> Table:
    """The typed columns of a Parquet file, rows counted from 1. Raises InputError if it cannot be read."""
    rows = pl.scan_parquet(path, row_index_name=PLACE, row_index_offset=1, glob=False)
    table = Table(path, rows.with_columns(_NO_FAULT), (), "row")
    with table.reading():
        return table._replace(names=tuple(rows.collect_schema().names()[1:]))


def open_text(
    path: Path, *, wanted: Sequence[str] = (), numbered: bool = False, separator: str | None = None
) -> Table:
    """The columns of a text file with a separator (gzip or not), all of them texts; blank lines are left out.

    A numbered file has no header, and its columns are named 1, 2 and so on. Without a separator the one is
    taken that the first lines have most of, and all alike; `wanted` are columns it should lead to. Raises
    InputError if the file cannot be read.
    """
    sample = _first_lines(path)
    found = find_separator(sample, () if numbered else wanted)
    mark = separator or found
    first = split_line(sample[0], mark) if sample else []
    missed = not numbered and not set(wanted) <= set(first)
    if missed and mark != found and set(wanted) <= set(split_line(sample[0], found)):
        raise InputError(
            f"{path}: separator {separator_name(mark)} does not lead to the columns {', '.join(wanted)}: say "
            f"separator={separator_name(found)}"
        )
    whole = len(mark.encode()) > 1
    rows = pl.scan_csv(
        path,
        separator=_NO_SEPARATOR if whole else mark,
        quote_char=None if whole else '"',
        has_header=not (numbered or whole),
        infer_schema=False,
        row_index_name=PLACE,
        row_index_offset=1 if numbered or whole else 2,
        glob=False,
    )
    table = Table(path, rows, tuple(first), "line", mark)
    with table.reading():
        columns = rows.collect_schema().names()[1:]
        if whole:
            if not numbered:
                rows = rows.filter(pl.col(columns[0]).is_not_null()).slice(1)
            names = [str(number) for number in range(1, len(first) + 1)] if numbered else first
            rows = _split(rows, columns[0], mark, names)
        else:
            names = [str(number) for number in range(1, len(columns) + 1)] if numbered else columns
            rows = rows.rename(dict(zip(columns, names, strict=True))).with_columns(_NO_FAULT)
    filled = pl.any_horizontal(pl.col(name).is_not_null() for name in (FAULT, *names))
    return table._replace(rows=rows.filter(filled), names=tuple(names))


def open_lines(path: Path) -> Table:
    """Each line of a text file as one text, in the one column `1`; blank lines are left out."""
    rows = pl.scan_csv(
        path,
        separator=_NO_SEPARATOR,
        quote_char=None,
        has_header=False,
        infer_schema=False,
        row_index_name=PLACE,
        row_index_offset=1,
        glob=False,
    )
    table = Table(path, rows, ("1",), "line", _NO_SEPARATOR)
    with table.reading():
        (column,) = rows.collect_schema().names()[1:]
    rows = rows.rename({column: "1"}).filter(pl.col("1").str.strip_chars() != "")
    return table._replace(rows=rows.with_columns(_NO_FAULT))


def open_json_lines(path: Path, wanted: Sequence[str]) -> Table:
    """The wanted members of JSON objects, one a line, as texts; lists and objects stay JSON.

    A member that no line has is no column. Raises InputError if the file cannot be read.
    """
    decode = msgspec.json.Decoder(dict[str, Any]).decode
    places: list[int] = []
    raw: list[str] = []
    faults: list[str | None] = []
    columns: dict[str, list[str | None]] = {name: [] for name in wanted}
    names: dict[str, None] = {}
    for place, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        members: dict[str, Any] = {}
        fault = None
        try:
            members = decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            fault = f"no JSON object: {error}"
        places.append(place)
        raw.append(line.decode(errors="replace").strip())
        faults.append(fault)
        names.update(dict.fromkeys(members))
        for name, values in columns.items():
            values.append(_text(members.get(name)))
    frame = pl.DataFrame(
        {
            PLACE: pl.Series(places, dtype=pl.UInt32),
            _RAW: pl.Series(raw, dtype=pl.String),
            FAULT: pl.Series(faults, dtype=pl.String),
            **{name: pl.Series(values, dtype=pl.String) for name, values in columns.items()},
        }
    )
    return Table(path, frame.lazy(), tuple(names), "line", raw=_RAW)


def _first_lines(path: Path) -> list[str]:
    lines = []
    for line in read_lines(path):
        if text := line.decode(errors="replace").removeprefix("\ufeff").rstrip("\r\n"):
            lines.append(text)
        if len(lines) == _SAMPLED_LINES:
            break
    return lines


def _split(rows: pl.LazyFrame, column: str, mark: str, names: Sequence[str]) -> pl.LazyFrame:
    """Columns out of whole lines; a line of more fields than there are names is a fault."""
    parts = pl.col(_RAW)
    fields = [
        parts.list.get(place, null_on_oob=True).replace("", None).alias(name)
        for place, name in enumerate(names)
    ]
    told = pl.format(f"has {{}} fields, where the first line has {len(names)}", parts.list.len())
    fault = pl.when(parts.list.len() > len(names)).then(told).alias(FAULT)
    return rows.with_columns(pl.col(column).str.split(mark).alias(_RAW)).select(PLACE, fault, *fields)


def _text(value: object) -> str | None:
    match value:
        case None | str():
            return value
        case bool():
            return "true" if value else "false"
        case float() if value.is_integer():
            return str(int(value))
        case int() | float():
            return str(value)
        case _:
            return msgspec.json.encode(value).decode()
