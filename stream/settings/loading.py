"""Reads settings from a TOML file, the environment and flags, and says what is wrong and where."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct, structs

from mtgr.errors import InputError
from mtgr.suggestions import did_you_mean
from schemas.describing import describe
from stream.settings.checks import check
from stream.settings.describing import is_optional, is_secret
from stream.settings.groups import Settings
from stream.settings.secret import MASK

# Two underscores, because Kubernetes sets MTGR_STREAM_PORT and the like for a service named mtgr-stream.
ENVIRONMENT_PREFIX: Final = "MTGR_STREAM__"

_GROUPS: Final[dict[str, type[Struct]]] = {group.name: group.type for group in structs.fields(Settings)}
_FIELDS: Final[dict[str, Any]] = {
    f"{group}.{field.name}": field.type
    for group, struct in _GROUPS.items()
    for field in structs.fields(struct)
}


@dataclass(frozen=True, slots=True)
class _Entry:
    key: str  # group.field
    value: object
    source: str  # file, variable or flag, as the user knows it
    is_text: bool  # whether the value came as plain text, to be read as a TOML scalar


def load_settings(path: Path | None, environ: Mapping[str, str], overrides: Sequence[str]) -> Settings:
    """Settings from a TOML file < `MTGR_STREAM__GROUP__KEY` variables < `group.key=value` flags.

    A value in a variable or flag is read as a TOML scalar where the setting takes one, else as a plain
    string; an empty one unsets an optional setting. A secret is taken as it stands. Relative paths are
    relative to the working directory, wherever they are set, as with Kafka's own tools.

    Raises InputError, one line with the source, the key, the value (masked if secret) and what is right.
    """
    values: dict[str, object] = {}
    sources: dict[str, str] = {}
    for entry in (*_from_file(path), *_from_environment(environ), *_from_flags(overrides)):
        values[entry.key] = _convert(entry)
        sources[entry.key] = entry.source
    groups: dict[str, Any] = {
        group: struct(
            **{key.split(".")[1]: value for key, value in values.items() if key.startswith(f"{group}.")}
        )
        for group, struct in _GROUPS.items()
    }
    return check(Settings(**groups), sources)


def _from_file(path: Path | None) -> Iterator[_Entry]:
    if path is None:
        return
    try:
        document = tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise InputError(f"{path}: cannot read the settings file: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid TOML: {error}") from None
    except RecursionError:
        raise InputError(f"{path}: not valid TOML: nested too deeply") from None
    for group, table in document.items():
        if group not in _GROUPS:
            raise InputError(f"{path}: unknown group [{group}]{did_you_mean(group, _GROUPS)}")
        if not isinstance(table, dict):
            raise InputError(f"{path}: {group} = {_shown(table)}: expected a table, [{group}]")
        for field, value in table.items():
            yield _Entry(_known(f"{group}.{field}", str(path)), value, str(path), False)


def _from_environment(environ: Mapping[str, str]) -> Iterator[_Entry]:
    names = {ENVIRONMENT_PREFIX + key.replace(".", "__").upper(): key for key in _FIELDS}
    for name, text in environ.items():
        if not name.startswith(ENVIRONMENT_PREFIX):
            continue
        if name not in names:
            raise InputError(
                f"environment: unknown variable {name}{did_you_mean(name, names, ENVIRONMENT_PREFIX)}"
            )
        yield _Entry(names[name], text, f"environment variable {name}", True)


def _from_flags(overrides: Sequence[str]) -> Iterator[_Entry]:
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            name = re.match(r"[\w.]*", key)  # no more than the name: the rest may be a password
            raise InputError(
                f"--set {name[0] if name else ''}: expected group.key=value, as in --set kafka.group_id=mtgr"
            )
        yield _Entry(_known(key.strip(), "--set"), text, "--set", True)


def _known(key: str, source: str) -> str:
    if key in _FIELDS:
        return key
    group, _, field = key.rpartition(".")
    if group in _GROUPS:
        known = [f"{group}.{sibling.name}" for sibling in structs.fields(_GROUPS[group])]
        hint = did_you_mean(key, known, prefix=f"{group}.")
    elif elsewhere := [known for known in _FIELDS if known.endswith(f".{field}")]:
        hint = did_you_mean(key, elsewhere)
    else:
        hint = did_you_mean(group or key, _GROUPS)
    raise InputError(f"{source}: unknown setting {_shown(key)}{hint}")


def _convert(entry: _Entry) -> object:
    type_ = _FIELDS[entry.key]
    candidates = [entry.value]
    if entry.is_text and isinstance(entry.value, str):
        if entry.value == "" and is_optional(type_):
            return None
        if not is_secret(type_):
            candidates = [*_scalar(entry.value), entry.value]
    for candidate in candidates:
        try:
            if isinstance(candidate, str):
                candidate.encode()  # variables that are not UTF-8 hold surrogates, which no file can
            return msgspec.convert(candidate, type_, dec_hook=_decode)
        except (msgspec.ValidationError, UnicodeEncodeError):
            continue
    shown = MASK if is_secret(type_) else _shown(entry.value)
    raise InputError(f"{entry.source}: {entry.key} = {shown}: expected {describe(type_)}")


def _scalar(text: str) -> list[object]:
    try:
        document = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return []
    value = document.get("value")
    return [value] if len(document) == 1 and isinstance(value, str | bool | int | float) else []


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= 80 else text[:79] + "…"


def _decode(type_: type, value: object) -> object:
    if not isinstance(value, str) or not value or "\0" in value:
        raise msgspec.ValidationError
    return Path(value).expanduser() if type_ is Path else type_(value)
