"""Runs the daemon with an engine that costs nothing: `python daemon_under_test.py MAKER PID_FILE python -m stream ...`.

All but the engine is the daemon as it is. The engine's answers tell which history they were made from, its model's
version is MAKER, and it is a process of its own, which can be killed and frozen; its id stands in PID_FILE.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from answers import MAX_EVENTS, answer, history_digest

from mtgr.errors import EngineFailed
from mtgr.requests import AddedVideos, ListOutcome, ListRequest, ListResult, ModelInfo, NewVideo
from stream.generation import Generator
from stream.settings import Settings

_ECHO = ("cat",)
_RECORD_BYTES = 32


class Engine:
    """A Generator behind a process that gives back what it is sent: what that one does not confirm was not made."""

    def __init__(self, maker: str, pid_file: Path) -> None:
        self._info = ModelInfo("chaos", maker, MAX_EVENTS, 10_000)
        self._pid_file = pid_file
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    async def start(self) -> ModelInfo:
        self._process = await asyncio.create_subprocess_exec(
            *_ECHO, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, start_new_session=True
        )
        written = self._pid_file.with_suffix(".new")
        written.write_text(str(self._process.pid))
        written.replace(self._pid_file)
        return self._info

    async def recommend(self, requests: Sequence[ListRequest]) -> list[ListOutcome]:
        async with self._turn:
            await self._confirm()
        return [_list(request) for request in requests]

    async def _confirm(self) -> None:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise EngineFailed("the engine does not run")
        try:
            process.stdin.write(b"batch\n")
            await process.stdin.drain()
            answered = await process.stdout.readline()
        except (OSError, RuntimeError) as error:  # the latter of uvloop, where the pipe is closed already
            raise EngineFailed(f"the engine's process died: {error}") from error
        if not answered:
            raise EngineFailed("the engine's process died")

    async def add_videos(self, videos: Sequence[NewVideo]) -> AddedVideos:
        return AddedVideos(len(videos), 0, [])

    async def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def _list(request: ListRequest) -> ListResult:
    digest = history_digest(request.records, request.videos)
    scores = [-float(rank) for rank in range(request.count)]
    return ListResult(answer(digest, request.count), scores, len(request.records) // _RECORD_BYTES, 0)


def main() -> None:
    from stream import daemon
    from stream.cli import main as run

    maker, pid_file = sys.argv[1], Path(sys.argv[2])

    def factory(settings: Settings, replica: int = 0) -> Callable[[], Generator]:
        return lambda: Engine(maker, pid_file)

    daemon.generator_factory = factory  # type: ignore[attr-defined]
    # as `python -m stream` would see it
    sys.argv = ["mtgr-stream", *sys.argv[sys.argv.index("stream") + 1 :]]
    run()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
