"""A StateStore in a dict, with the same bytes in and out as the real one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

from stream.sequences import UserState
from stream.stored import Change, Tail, owed_since, read_tail, stored_keys, tail_key, user_of_tail_key


class DictStore:
    """User states in a dict; `values` may be handed on to another store, as files are to the next process."""

    def __init__(self, values: Mapping[bytes, bytes] | None = None, checkpoint: int = 0) -> None:
        self.values = dict(values or {})
        self.checkpoint = checkpoint
        self.closed = False

    def load(self, user_id: str) -> UserState | None:
        value = self.values.get(tail_key(user_id))
        if value is None:
            return None
        tail = read_tail(value)
        return UserState.from_store(
            user_id, tail, [self.values.get(key) for key in stored_keys(user_id, tail)]
        )

    def value(self, key: bytes) -> bytes | None:
        return self.values.get(key)

    def apply(self, changes: Iterable[Change], checkpoint: int) -> None:
        for key, value in changes:
            if value is None:
                self.values.pop(key, None)
            else:
                self.values[key] = value
        self.checkpoint = checkpoint

    def scan(self) -> Iterator[tuple[str, int]]:
        for key, value in sorted(self.values.items()):
            user_id = user_of_tail_key(key)
            if user_id is not None:
                yield user_id, owed_since(read_tail(value))

    def tails(self, after: str | None, count: int) -> list[tuple[str, Tail]]:
        users = (
            (user_id, read_tail(value))
            for key, value in sorted(self.values.items())
            if (user_id := user_of_tail_key(key)) is not None and (after is None or key > tail_key(after))
        )
        return list(islice(users, count))

    def close(self) -> None:
        self.closed = True

    def discard(self) -> None:
        self.values.clear()
        self.close()
