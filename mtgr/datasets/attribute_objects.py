"""Attributes out of JSON, object by object."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from mtgr.datasets.attribute_rules import ID_COLUMNS, MAX_EXACT, no_id, told_twice, too_long, too_many
from mtgr.datasets.wire_log import read_lines
from mtgr.errors import InputError
from mtgr.suggestions import did_you_mean
from schemas.attributes import MAX_ATTRIBUTE_CHARACTERS, MAX_ATTRIBUTE_VALUES, MAX_ATTRIBUTES, Attributes
from schemas.bounds import MAX_ID_CHARACTERS

_ALONE: Final = "attributes"
"""What the values are called where a file gives an id nothing but values."""


def read_objects(
    path: Path, first: bytes, id_column: str | None, columns: Sequence[str] | None, lists: Mapping[str, str]
) -> dict[str, Attributes]:
    """Attributes by id of JSON whose first filled line is `first`; see `mtgr.datasets.attributes.read_attributes`."""
    found: dict[str, Attributes] = {}
    names: dict[str, None] = {}
    rows = list(_objects(path, first, id_column))
    for _, _, members in rows:
        names.update(dict.fromkeys(members))
    for column in (*(columns or ()), *lists):
        if column not in names:
            raise InputError(f"{path}: there is no attribute {column!r}{did_you_mean(column, names)}")
    chosen = names if columns is None else set(columns)
    for place, identifier, members in rows:
        shown = _shown_id(identifier)
        if shown is None or not 1 <= len(shown) <= MAX_ID_CHARACTERS:
            raise no_id(path, place, id_column or "the id", identifier)
        attributes: Attributes = {}
        for name, value in members.items():
            if name in lists and isinstance(value, str):
                value = [text.strip() for text in value.split(lists[name])]
            if name in chosen and (kept := _kept(value, path, place, name)) is not None:
                attributes[name] = kept
        if len(attributes) > MAX_ATTRIBUTES:
            raise InputError(
                f"{path}: {place}: has {len(attributes)} attributes, where at most {MAX_ATTRIBUTES} are kept; "
                f"choose some"
            )
        if found.setdefault(shown, attributes) != attributes:
            raise told_twice(path, place, id_column or "the id", shown)
    return found


def _objects(path: Path, first: bytes, id_column: str | None) -> Iterator[tuple[str, object, dict[str, Any]]]:
    """Place, id and attributes of each object in a file."""
    lines = ((number, line) for number, line in enumerate(read_lines(path), start=1) if line.strip())
    if _is_object(first) and not _is_whole(path):
        for number, line in lines:
            try:
                members = msgspec.json.decode(line, type=dict[str, Any])
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise InputError(f"{path}: line {number}: no JSON object: {error}") from None
            yield _row(path, f"line {number}", members, id_column)
        return
    try:
        whole = msgspec.json.decode(b"".join(line for _, line in lines))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is no JSON: {error}") from None
    if isinstance(whole, list):
        for number, members in enumerate(whole, start=1):
            if not isinstance(members, dict):
                raise InputError(f"{path}: element {number}: should be an object of an id and its attributes")
            yield _row(path, f"element {number}", members, id_column)
    elif {id_column, *ID_COLUMNS} & whole.keys():
        yield _row(path, "line 1", whole, id_column)
    else:
        for identifier, value in whole.items():
            yield f"id {identifier!r}", identifier, value if isinstance(value, dict) else {_ALONE: value}


def _row(
    path: Path, place: str, members: dict[str, Any], id_column: str | None
) -> tuple[str, object, dict[str, Any]]:
    if not members:
        raise InputError(f"{path}: {place}: is empty, where it should hold an id and its attributes")
    name = id_column or next((name for name in ID_COLUMNS if name in members), next(iter(members)))
    if name not in members:
        raise InputError(f"{path}: {place}: there is no {name!r}{did_you_mean(name, members)}")
    identifier = members.pop(name)
    attributes = members.get(_ALONE)
    return place, identifier, attributes if isinstance(attributes, dict) else members


def _is_object(line: bytes) -> bool:
    try:
        msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True


def _is_whole(path: Path) -> bool:
    """Whether the first line is all there is."""
    filled = (line for line in read_lines(path) if line.strip())
    next(filled)
    return next(filled, None) is None


def _shown_id(identifier: object) -> str | None:
    if isinstance(identifier, str):
        return identifier
    if isinstance(identifier, bool) or not isinstance(identifier, int | float):
        return None
    return str(int(identifier)) if float(identifier).is_integer() else str(identifier)


def _kept(value: object, path: Path, place: str, name: str) -> str | float | list[str] | None:
    """The value as an attribute, None where it says nothing."""
    if isinstance(value, list):
        texts = [_text(each, path, place, name) for each in value if each is not None and each != ""]
        if len(texts) > MAX_ATTRIBUTE_VALUES:
            raise too_many(path, place, name, len(texts))
        return texts or None
    if value is None or value == "":
        return None
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_EXACT:
        return float(value)
    return _text(value, path, place, name)


def _text(value: object, path: Path, place: str, name: str) -> str:
    match value:
        case bool():
            text = "true" if value else "false"
        case str():
            text = value
        case float() if value.is_integer() and abs(value) <= MAX_EXACT:
            text = str(int(value))
        case int() | float():
            text = str(value)
        case _:
            noun = "an object" if isinstance(value, dict) else "a list of lists"
            raise InputError(
                f"{path}: {place}: {name} is {noun}, where it should be text, a number or a list of texts"
            )
    if len(text) > MAX_ATTRIBUTE_CHARACTERS:
        raise too_long(path, place, name, len(text))
    return text
