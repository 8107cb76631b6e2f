"""Attributes of videos and users out of files: one column is the id, the others what is known of it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from mtgr.datasets.attribute_objects import read_objects
from mtgr.datasets.log_files import existing_file
from mtgr.datasets.wire_log import read_lines
from mtgr.errors import InputError
from schemas.attributes import Attributes


def read_attributes(
    path: str | os.PathLike[str],
    id_column: str | None = None,
    columns: Sequence[str] | None = None,
    lists: Mapping[str, str] | None = None,
) -> dict[str, Attributes]:
    """Attributes by id, of a table (text with a separator, Parquet), JSON lines or JSON; gzip but for Parquet.

    Numbers stay numbers, texts and times are texts, lists are lists of texts; what is null or empty is left
    out. A column of text is numeric where all its values are numbers that lose nothing by it: 007 and an id
    of 19 digits do. In JSON each object is one id; or the file is one object of ids, each with an object of
    attributes or with values alone, which are called `attributes`. An object with an `attributes` object, as
    on the wire, has those.

    The id column is the first of `attribute_rules.ID_COLUMNS` that is there, else the first column; in a file
    without a header line columns are named by number, from 1. `columns` chooses attributes: none but those are
    checked. `lists` names columns whose texts are lists, each with what parts them: {"genres": "|"}. Raises
    InputError naming file, line and column if the file cannot be read, a column is not there, an id is no id or
    stands there twice with different attributes, or a value breaks the bounds of attributes on the wire.
    """
    file = existing_file(path)
    first = next((text for line in read_lines(file) if (text := line.strip())), b"")
    if not first:
        raise InputError(
            f"{file}: holds nothing; it should be CSV, Parquet, JSON lines or JSON of attributes"
        )
    if first[:1] in (b"{", b"["):
        return read_objects(file, first, id_column, columns, lists or {})
    from mtgr.datasets.attribute_tables import read_table  # polars takes longer to import than many a file

    return read_table(file, id_column, columns, lists or {})
