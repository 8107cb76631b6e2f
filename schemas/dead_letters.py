"""Why a record died, as headers: Kafka Connect's `__connect.errors.*`, so that its tools can read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Final, Self

import msgspec
from msgspec import Meta, Struct, structs

from schemas.errors import Stage

PREFIX: Final = "__connect.errors."
MAX_MESSAGE_CHARACTERS: Final = 1_024

REPLAYED_HEADER: Final = "mtgr.replayed"
"""Marks a record that was sent back from the dead letters: its event may be in its user's sequence already."""

Header = tuple[str, bytes | None]


def _header(name: str) -> Any:
    return msgspec.field(name=PREFIX + name)


class DeadLetter(Struct, frozen=True, kw_only=True):
    """Where a record came from and why it could not be served; the record itself is kept whole beside it."""

    topic: Annotated[str, Meta(description="Topic that the record was read from.")] = _header("topic")
    partition: Annotated[int, Meta(ge=0, description="Partition that the record was read from.")] = _header(
        "partition"
    )
    offset: Annotated[int, Meta(ge=0, description="Offset that the record was read at.")] = _header("offset")
    stage: Annotated[Stage, Meta(description="Step at which the record died.")] = _header("stage")
    exception_class: Annotated[
        str, Meta(min_length=1, max_length=256, description="Kind of the error, stable enough to select by.")
    ] = _header("exception.class.name")
    message: Annotated[
        str, Meta(max_length=MAX_MESSAGE_CHARACTERS, description="One line that names the field to blame.")
    ] = _header("exception.message")

    @classmethod
    def make(
        cls, *, topic: str, partition: int, offset: int, stage: Stage, exception_class: str, message: str
    ) -> Self:
        """A dead letter whose message is brought to one line of bounded length."""
        line = " ".join(message.encode(errors="backslashreplace").decode().split())
        if len(line) > MAX_MESSAGE_CHARACTERS:
            line = line[: MAX_MESSAGE_CHARACTERS - 1] + "…"
        return cls(
            topic=topic,
            partition=partition,
            offset=offset,
            stage=stage,
            exception_class=exception_class,
            message=line,
        )

    def to_headers(self) -> list[Header]:
        """The reason as headers, to go after the record's own."""
        return [
            (field.encode_name, str(getattr(self, field.name)).encode()) for field in structs.fields(self)
        ]

    @classmethod
    def from_headers(cls, headers: Iterable[Header]) -> Self:
        """The reason in a dead record's headers, the last one where it died more than once.

        Raises ValueError that names the header which is missing or wrong.
        """
        found = {name: value for name, value in headers if name.startswith(PREFIX)}
        fields = {}
        for field in structs.fields(cls):
            name = field.encode_name
            value = found.get(name)
            if value is None:
                raise ValueError(f"header {name} is missing")
            try:
                fields[field.name] = msgspec.convert(value.decode(), field.type, strict=False)
            except ValueError as error:
                raise ValueError(f"header {name} = {value[:80]!r}: {error}") from None
        return cls(**fields)


def original_headers(headers: Sequence[Header]) -> list[Header]:
    """The headers that a dead record had while it lived."""
    return [header for header in headers if not header[0].startswith(PREFIX)]
