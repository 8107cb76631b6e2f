"""Where a producer stopped in its input, kept in a file, so that it can go on from there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct
from xxhash import xxh3_64

from mtgr.datasets import ColumnMapping
from mtgr.errors import InputError

_SAMPLED_BYTES: Final = 1 << 20


class InputFile(Struct, frozen=True, forbid_unknown_fields=True):
    """What a file is known by: its length, and the digest of its first and last MiB. It may be moved and
    renamed.
    """

    path: str
    bytes: int
    digest: str

    @classmethod
    def of(cls, path: Path) -> InputFile:
        """Identify a file; raises InputError if it cannot be read."""
        try:
            with path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(0)
                digest = xxh3_64(file.read(_SAMPLED_BYTES))
                file.seek(max(size - _SAMPLED_BYTES, 0))
                digest.update(file.read())
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None
        return cls(str(path), size, digest.hexdigest())


class Position(Struct, frozen=True, forbid_unknown_fields=True):
    """How many events of an input are acknowledged by a topic. Events are counted as the readers yield them."""

    inputs: tuple[InputFile, ...]
    topic: str
    mapping: ColumnMapping | None
    acknowledged: Annotated[int, Meta(ge=0)]

    @classmethod
    def start_of(cls, paths: Sequence[Path], topic: str, mapping: ColumnMapping | None) -> Position:
        """Nothing acknowledged yet; raises InputError if a file cannot be read."""
        return cls(tuple(InputFile.of(path) for path in paths), topic, mapping, 0)

    def resumed_from(self, file: Path) -> Position:
        """This position moved to where `file` says that the same input stood; as it is, where there is no
        such file.

        Raises InputError if the file is damaged, or tells of another input, topic or mapping.
        """
        try:
            kept = msgspec.json.decode(file.read_bytes(), type=Position)
        except FileNotFoundError:
            return self
        except OSError as error:
            raise InputError(f"{file}: cannot be read: {error.strerror}") from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{file}: is no file of --resume: {error}; remove it to start over") from None
        over = f"; to start over, remove {file}"
        if len(kept.inputs) != len(self.inputs):
            raise InputError(f"{file}: was kept for {len(kept.inputs)} files, not {len(self.inputs)}{over}")
        for was, is_ in zip(kept.inputs, self.inputs, strict=True):
            if (was.bytes, was.digest) != (is_.bytes, is_.digest):
                raise InputError(
                    f"{is_.path}: is not what {file} was kept for: {_difference(was, is_)}{over}"
                )
        if kept.topic != self.topic:
            raise InputError(f"{file}: was kept for topic {kept.topic}, not {self.topic}{over}")
        if kept.mapping != self.mapping:
            raise InputError(f"{file}: was kept for another mapping of columns{over}")
        return msgspec.structs.replace(self, acknowledged=kept.acknowledged)

    def save(self, file: Path, acknowledged: int) -> None:
        """Write this position, moved to `acknowledged`, whole or not at all."""
        partial = file.with_name(f".{file.name}.partial")
        moved = msgspec.structs.replace(self, acknowledged=acknowledged)
        try:
            with partial.open("wb") as out:
                out.write(msgspec.json.encode(moved) + b"\n")
                out.flush()
                os.fsync(out.fileno())
            partial.replace(file)
        except OSError as error:
            raise InputError(f"{file}: cannot be written: {error.strerror}") from None


def _difference(was: InputFile, is_: InputFile) -> str:
    if was.bytes != is_.bytes:
        return f"it had {was.bytes} bytes and has {is_.bytes}"
    return f"its content has changed (or the files are named in another order than {was.path} was)"
