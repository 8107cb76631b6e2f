"""What the engine of the chaos runs answers: a list that tells which history it was made from."""

from __future__ import annotations

from xxhash import xxh3_64_intdigest

MAX_EVENTS = 64
"""Events that a sequence is cut back to: few, so that most users are cut during a run."""


def history_digest(records: bytes | bytearray, videos: bytes | bytearray) -> int:
    """64 bits that stand for one history: its packed records and the video ids beside them."""
    return xxh3_64_intdigest(bytes(records) + b"\0" + bytes(videos))


def answer(digest: int, count: int) -> list[str]:
    """The videos of the list that is made from the history of this digest."""
    return [f"{digest:016x}-{rank}" for rank in range(1, count + 1)]
