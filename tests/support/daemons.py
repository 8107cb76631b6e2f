"""Daemons under test: processes of their own for what signals and crashes do, or inside the test for the rest."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from records import DEADLINE_SECONDS, TopicNames, eventually

from stream import daemon as daemon_module
from stream.daemon import Daemon
from stream.demo.daemon import DaemonProcess
from stream.generation import Generator
from stream.settings import Settings, load_settings

START_SECONDS = 90.0  # torch alone takes seconds to import, on a machine that others use too

_DEFAULTS = {
    "generator.kind": "torch",
    "generator.list_length": 5,
    "trigger.quiet_period_ms": 20,
    "trigger.max_wait_ms": 200,
    "kafka.session_timeout_ms": 6_000,  # the least a broker allows: so long a killed daemon is missed
    "kafka.rebalance_timeout_ms": 15_000,
    "stream.drain_deadline_seconds": 10,
    "log.format": "json",
    "log.level": "debug",
}


class Running(DaemonProcess):
    """A daemon process, waited for without holding up the test's own event loop."""

    async def ready(self, within: float = START_SECONDS) -> Running:
        """Return once /readyz says so; fails with the end of its log."""
        await asyncio.to_thread(self.wait_ready, within)
        return self

    async def ended(self, within: float = DEADLINE_SECONDS) -> int:
        """The exit code, once it has ended."""
        await eventually(
            lambda: self.child.exit_code is not None, f"the end of {self.child.name}", within=within
        )
        code = self.child.exit_code
        assert code is not None
        return code

    def terminate(self) -> None:
        """SIGTERM."""
        self.child.send(signal.SIGTERM)

    async def drain(self, within: float = DEADLINE_SECONDS) -> None:
        """SIGTERM, and return once it has ended in good order; fails with the end of its log otherwise."""
        self.terminate()
        code = await self.ended(within)
        tail = "\n".join(self.child.output().splitlines()[-20:])
        assert code == 0, f"{self.child.name} ended with exit code {code}:\n{tail}"

    def kill(self) -> None:
        """SIGKILL."""
        self.child.kill()

    def logged(self, event: str) -> list[dict[str, Any]]:
        """What it has logged of one kind so far."""
        return [line for line in self.log() if line.get("event") == event]

    def log(self) -> list[dict[str, Any]]:
        """Its whole log; lines that are not JSON under `text`."""
        lines = []
        for line in self.child.output().splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                lines.append({"text": line})
        return lines

    def plain_output(self) -> list[str]:
        """The lines that are no log records: what a person at a terminal is told."""
        return [line["text"] for line in self.log() if "text" in line]

    async def until_logged(self, event: str, count: int = 1, within: float = DEADLINE_SECONDS) -> None:
        """Return once an event was logged so many times."""
        await eventually(
            lambda: len(self.logged(event)) >= count, f"{event} in {self.child.log}", within=within
        )

    async def until_metric(
        self, name: str, holds: Callable[[float], bool], within: float = DEADLINE_SECONDS
    ) -> None:
        """Return once a metric, summed over its labels, is as wanted."""

        async def as_wanted() -> bool:
            return holds((await asyncio.to_thread(self.metrics)).get(name, 0.0))

        await eventually(as_wanted, f"{name} of {self.child.name}", within=within)

    async def until_readiness(
        self, holds: Callable[[dict[str, Any]], bool], what: str, within: float = DEADLINE_SECONDS
    ) -> None:
        """Return once /readyz answers as wanted."""

        async def as_wanted() -> bool:
            answer = await asyncio.to_thread(self.readiness)
            return bool(answer) and holds(answer)

        await eventually(as_wanted, f"/readyz: {what}", within=within)


class Deployment:
    """Daemons of one group on one set of topics."""

    def __init__(
        self, servers: str, names: TopicNames, checkpoint: Path, directory: Path, partitions: int = 2
    ) -> None:
        self.servers = servers
        self.names = names
        self.directory = directory
        self._shared: dict[str, object] = {
            **_DEFAULTS,
            "kafka.bootstrap_servers": servers,
            "kafka.group_id": names.group,
            "topics.events": names.events,
            "topics.lists": names.lists,
            "topics.dead_letters": names.dead_letters,
            "topics.changelog": names.changelog,
            "topics.partitions": partitions,
            "model.checkpoint": str(checkpoint),
        }
        self._started: list[Running] = []

    def use_server(self, url: str) -> None:
        """Let the daemons started from now on share an engine server: they then need no model of their own."""
        self._shared |= {"generator.kind": "server", "generator.url": url, "model.checkpoint": None}

    def state_directory(self, name: str = "daemon") -> Path:
        """Where the daemon of this name keeps its local state."""
        return self.directory / f"{name}-state"

    def options(self, name: str, changes: Mapping[str, object] | None = None) -> dict[str, object]:
        """The settings of one daemon; a change to None leaves a setting out."""
        own = {"kafka.client_id": name, "state.directory": str(self.state_directory(name))}
        merged = {**self._shared, **own, **(changes or {})}
        return {key: value for key, value in merged.items() if value is not None}

    def start(
        self,
        name: str = "daemon",
        changes: Mapping[str, object] | None = None,
        prefix: Sequence[str] = (),
    ) -> Running:
        """Start a process; it ends with the test at the latest. `prefix` stands before its command."""
        running = Running(self.directory, self.options(name, changes), name=name, prefix=prefix)
        self._started.append(running)
        return running

    def settings(self, name: str = "daemon", changes: Mapping[str, object] | None = None) -> Settings:
        """The settings of a daemon inside the test."""
        options = {"http.port": 0, **self.options(name, changes)}
        return load_settings(None, {}, [f"{key}={_as_text(value)}" for key, value in options.items()])

    def kill_all(self) -> None:
        """Leave no process behind."""
        for running in self._started:
            running.kill()


@contextlib.contextmanager
def deployed(
    servers: str, names: TopicNames, checkpoint: Path, directory: Path, partitions: int = 2
) -> Iterator[Deployment]:
    """A deployment whose processes are gone at the end of the block."""
    deployment = Deployment(servers, names, checkpoint, directory, partitions)
    try:
        yield deployment
    finally:
        deployment.kill_all()


class Inside:
    """A daemon that runs in the test's own event loop."""

    def __init__(self, settings: Settings) -> None:
        self.daemon = Daemon(settings)
        self.task = asyncio.create_task(self.daemon.run(), name="daemon")

    async def ready(self, within: float = DEADLINE_SECONDS) -> None:
        """Return once it is ready; raises what ended it."""
        deadline = time.monotonic() + within
        while not self.daemon.health.is_ready:
            if self.task.done():
                self.task.result()
                raise AssertionError("the daemon ended before it was ready")
            if time.monotonic() > deadline:
                raise AssertionError(f"not ready in {within:g} s: {dict(self.daemon.health.reasons)}")
            await asyncio.sleep(0.02)

    def metric(self, name: str, **labels: str) -> float:
        """One sample of its metrics as a scrape would find it."""
        self.daemon.metrics.refresh()
        return self.daemon.metrics.registry.get_sample_value(f"mtgr_{name}", labels) or 0.0

    async def until(self, condition: Callable[[], bool], what: str, within: float = DEADLINE_SECONDS) -> None:
        """Return once the condition holds; raises what ended the daemon meanwhile."""

        def holds() -> bool:
            if self.task.done():
                self.task.result()
            return condition()

        await eventually(holds, what, within=within)

    async def readiness(self) -> tuple[int, dict[str, str | None]]:
        """The status of /readyz, 0 while nothing listens, and why each component is not ready."""
        try:
            url = f"http://127.0.0.1:{self.daemon.endpoint.port}/readyz"
        except IndexError:
            return 0, {}
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            body = await answer.json()
        return answer.status, {name: part["reason"] for name, part in body["components"].items()}

    async def drain(self, within: float = DEADLINE_SECONDS) -> None:
        """Stop it as SIGTERM does, and return once it is gone."""
        self.daemon.stop()
        await asyncio.wait_for(self.task, within)


@contextlib.asynccontextmanager
async def inside(
    deployment: Deployment,
    name: str = "daemon",
    changes: Mapping[str, object] | None = None,
    *,
    generator: Callable[[], Generator] | None = None,
    wait: bool = True,
) -> AsyncIterator[Inside]:
    """A daemon inside the test, ready unless told not to wait for that, and drained at the end of the block.

    `generator` makes what serves in place of the generator that the settings name.
    """
    with pytest.MonkeyPatch.context() as patch:
        if generator is not None:
            patch.setattr(daemon_module, "generator_factory", lambda settings, replica: generator)
        running = Inside(deployment.settings(name, changes))
        try:
            if wait:
                await running.ready()
            yield running
            if not running.task.done():
                await running.drain()
        finally:
            running.task.cancel()
            await asyncio.gather(running.task, return_exceptions=True)


def _as_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
