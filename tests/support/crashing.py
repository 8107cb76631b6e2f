"""Runs a daemon that kills itself at one step of a transaction: `python crashing.py STEP COUNT python -m stream ...`.

At that step of the COUNTth transaction that has a list in it, the process gets a SIGKILL. What stands behind is the
command as it would be without this.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextvars import ContextVar
from typing import Any

STEPS = (
    "begun",
    "changelog written",
    "lists written",
    "offsets added",
    "all acknowledged",
    "commit asked for",
    "committed",
    "files written",
)
"""The steps in the order in which a transaction takes them; the second to the fourth run beside each other."""

_with_lists: ContextVar[bool] = ContextVar("_with_lists", default=False)


def main() -> None:
    from aiokafka import AIOKafkaProducer

    from stream import changelog, exactly_once
    from stream.cli import main as run
    from stream.exactly_once import ExactlyOnce
    from stream.partition import CommitWork
    from stream.state import RocksStore

    step, left = sys.argv[1], int(sys.argv[2])
    assert step in STEPS, step

    def reached(name: str) -> None:
        nonlocal left
        if name == step and _with_lists.get():
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def after(owner: Any, function: str, name: str) -> None:
        original = getattr(owner, function)

        async def patched(*args: Any, **kwargs: Any) -> Any:
            result = await original(*args, **kwargs)
            reached(name)
            return result

        setattr(owner, function, patched)

    commit = ExactlyOnce._commit

    async def commit_one(self: ExactlyOnce, part: CommitWork) -> None:
        _with_lists.set(bool(part.lists))
        await commit(self, part)

    ExactlyOnce._commit = commit_one  # type: ignore[method-assign]
    after(AIOKafkaProducer, "begin_transaction", "begun")
    after(changelog, "append", "changelog written")
    after(exactly_once, "send_lists", "lists written")
    after(AIOKafkaProducer, "send_offsets_to_transaction", "offsets added")
    commit_transaction = AIOKafkaProducer.commit_transaction

    async def commit_it(producer: AIOKafkaProducer) -> None:
        reached("all acknowledged")
        ending = asyncio.ensure_future(commit_transaction(producer))
        for _ in range(4):  # turns in which the request is sent, and not yet answered
            await asyncio.sleep(0)
        reached("commit asked for")
        await ending
        reached("committed")

    AIOKafkaProducer.commit_transaction = commit_it
    apply = RocksStore.apply

    def apply_it(store: RocksStore, *args: Any) -> None:
        apply(store, *args)
        reached("files written")

    RocksStore.apply = apply_it  # type: ignore[method-assign]
    # as `python -m stream` would see it
    sys.argv = ["mtgr-stream", *sys.argv[sys.argv.index("stream") + 1 :]]
    run()


if __name__ == "__main__":
    main()
