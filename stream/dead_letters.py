"""Records that could not be served: kept whole, with the reason beside them, and never too many."""

from __future__ import annotations

from typing import Any, Final, Literal

from aiokafka import TopicPartition
from msgspec import Struct, structs

from schemas.dead_letters import DeadLetter
from schemas.errors import Stage
from schemas.lists import TriggerEvent
from stream.errors import Fatal

_HEADER_BYTES: Final = 10  # two lengths as varints
_BATCH_BYTES: Final = 61 + 36  # the head of a batch, and a record's own lengths and deltas
_ADVICE: Final = {
    "records": "is the events topic the right one, and its producer sound?",
    "lists": "is the checkpoint made for these events?",
}


class DeadRecord(Struct, frozen=True):
    """A source record on its way to the dead-letter topic."""

    letter: DeadLetter
    key: bytes | None
    value: bytes | None
    timestamp_ms: int
    headers: tuple[tuple[str, bytes | None], ...]

    @classmethod
    def of(cls, tp: TopicPartition, record: Any, stage: Stage, error_class: str, message: str) -> DeadRecord:
        """Wrap a record consumed from a partition and say why it died."""
        letter = DeadLetter.make(
            topic=tp.topic,
            partition=tp.partition,
            offset=record.offset,
            stage=stage,
            exception_class=error_class,
            message=message,
        )
        return cls(letter, record.key, record.value, record.timestamp, tuple(record.headers))

    @classmethod
    def of_trigger(
        cls, trigger: TriggerEvent, user_id: str, record: Any | None, error_class: str, message: str
    ) -> DeadRecord:
        """Wrap the event after which a list was due that the model refused; `record` is None if Kafka has lost it."""
        letter = DeadLetter.make(
            topic=trigger.topic,
            partition=trigger.partition,
            offset=trigger.offset,
            stage="generate",
            exception_class=error_class,
            message=message,
        )
        if record is None:
            return cls(letter, user_id.encode(), None, trigger.timestamp_ms, ())
        return cls(letter, record.key, record.value, record.timestamp, tuple(record.headers))

    def fitting(self, max_bytes: int) -> DeadRecord:
        """This record, or as much of it as a topic takes: without its value, or else with nothing but the reason.

        The reason tells where the whole record stands.
        """
        without_value = structs.replace(self, value=None)
        for record in (self, without_value):
            if record._nbytes() <= max_bytes:
                return record
        return structs.replace(without_value, key=None, headers=())

    def _nbytes(self) -> int:
        """Bytes that this takes in a topic as a record alone in its batch, at most."""
        headers = sum(
            len(name.encode()) + len(value or b"") + _HEADER_BYTES for name, value in self.all_headers()
        )
        return len(self.key or b"") + len(self.value or b"") + headers + _BATCH_BYTES

    def all_headers(self) -> list[tuple[str, bytes | None]]:
        """The record's own headers, then the reason."""
        return [*self.headers, *self.letter.to_headers()]


class DeadLetterGuard:
    """Stops the daemon rather than let it empty a topic into the dead letters.

    What comes is counted in windows of at least `window`; more than `share_limit` of one dead is fatal, and is noticed
    as soon as it is certain. A topic whose every record dies therefore loses no more than one window's share. Records
    that are no events and lists that the model refuses are two things: each has a guard of its own.
    """

    def __init__(self, counted: Literal["records", "lists"], window: int, share_limit: float) -> None:
        self._counted = counted
        self._window = window
        self._share_limit = share_limit
        self._seen = 0
        self._dead = 0

    def count(self, seen: int, dead: int) -> None:
        """So many came, of which so many are dead; raises Fatal."""
        self._seen += seen
        self._dead += dead
        # one batch may be longer than a window: it is judged as a whole
        if self._dead > self._share_limit * max(self._window, self._seen):
            raise Fatal(
                f"{self._dead} of the last {self._seen} {self._counted} are dead letters, above the limit of "
                f"{self._share_limit:.0%} of {self._window} (stream.dead_letter_share_limit, "
                f"stream.dead_letter_window): {_ADVICE[self._counted]}"
            )
        if self._seen >= self._window:
            self._seen = 0
            self._dead = 0
