"""Runs the command line tools as a user does, against the topics of a test."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

from records import DEADLINE_SECONDS, TopicNames

from stream.settings import Settings, load_settings

_MTGR_STREAM = Path(sys.executable).parent / "mtgr-stream"


def tool_settings(bootstrap_servers: str, names: TopicNames, **changes: object) -> dict[str, str]:
    """The settings that lead a tool to the topics of a test, as --set takes them; dots are written as __."""
    return {
        "kafka.bootstrap_servers": bootstrap_servers,
        "kafka.group_id": names.group,
        "topics.events": names.events,
        "topics.lists": names.lists,
        "topics.dead_letters": names.dead_letters,
        "topics.changelog": names.changelog,
        "topics.partitions": "2",
        **{key.replace("__", "."): str(value) for key, value in changes.items()},
    }


def settings_for(bootstrap_servers: str, names: TopicNames, **changes: object) -> Settings:
    """The same as settings, for what is run in the test's own process."""
    options = tool_settings(bootstrap_servers, names, **changes)
    return load_settings(None, {}, [f"{key}={value}" for key, value in options.items()])


class Ended(NamedTuple):
    """What a finished command has left."""

    code: int
    out: str
    err: str


class Tool:
    """`mtgr-stream` with the broker and the topic names set."""

    def __init__(self, bootstrap_servers: str, names: TopicNames, **changes: object) -> None:
        """`changes` as `tool_settings` takes them."""
        self._settings = tool_settings(bootstrap_servers, names, **changes)

    @contextlib.asynccontextmanager
    async def started(self, command: str, *arguments: object) -> AsyncIterator[asyncio.subprocess.Process]:
        """The command as a process with pipes, killed at the end if it still runs."""
        options = [word for key, value in self._settings.items() for word in ("--set", f"{key}={value}")]
        process = await asyncio.create_subprocess_exec(
            _MTGR_STREAM,
            command,
            *options,
            *map(str, arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def run(self, command: str, *arguments: object, stdin: bytes = b"") -> Ended:
        """Run a command to its end."""
        async with self.started(command, *arguments) as process:
            return await ended(process, stdin)


async def ended(process: asyncio.subprocess.Process, stdin: bytes | None = None) -> Ended:
    """What the process leaves when it ends by itself."""
    out, err = await asyncio.wait_for(process.communicate(stdin), DEADLINE_SECONDS)
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())
