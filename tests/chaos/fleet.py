"""The three daemons of a chaos run: processes with a name, a folder, and a number for every time they were started."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from bisect import bisect_right
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from daemons import START_SECONDS, Running
from records import eventually

from schemas.lists import RecommendationList

_ENTRY = Path(__file__).with_name("daemon_under_test.py")
DISK_MEBIBYTES = 96


class Member:
    """One daemon, started anew as often as it takes; what it kept on its disk stays unless told otherwise."""

    def __init__(self, name: str, directory: Path, settings: Mapping[str, object], disk: Path | None) -> None:
        """`disk` is a file system of its own for the state, which can be filled up; None where there is none."""
        self.name = name
        self.directory = directory
        self.state_directory = (disk or directory) / f"{name}-state"
        self.disk = disk
        self._settings = {**settings, "state.directory": str(self.state_directory)}
        self._starts = 0
        self.running: Running | None = None
        self.expected_to_end = False  # by the fault that is being done to it
        self.logs: list[tuple[str, Path]] = []  # the maker of lists and its log, for every start

    @property
    def is_running(self) -> bool:
        return self.running is not None and self.running.child.exit_code is None

    def start(self) -> Running:
        """Start the daemon; it is not ready yet."""
        self._starts += 1
        maker = f"{self.name}-{self._starts}"
        prefix = (sys.executable, str(_ENTRY), maker, str(self._pid_file))
        self.running = Running(self.directory, self._settings, name=maker, prefix=prefix)
        self.logs.append((maker, self.running.child.log))
        self.expected_to_end = False
        return self.running

    def send(self, sent: signal.Signals) -> None:
        """Send the daemon a signal."""
        assert self.running is not None
        self.running.child.send(sent)

    def kill(self) -> None:
        """SIGKILL."""
        if self.running is not None:
            self.expected_to_end = True
            self.running.kill()

    async def end(self, within: float) -> int:
        """SIGTERM; returns the exit code."""
        assert self.running is not None
        self.expected_to_end = True
        self.running.terminate()
        return await self.running.ended(within)

    def lose_disk(self) -> None:
        """Delete the local state."""
        shutil.rmtree(self.state_directory, ignore_errors=True)

    def engine_pid(self) -> int | None:
        """The process of the engine, None where it was not started yet."""
        with contextlib.suppress(OSError, ValueError):
            return int(self._pid_file.read_text())
        return None

    async def is_ready(self) -> bool:
        """Whether it runs and says that it is ready."""
        return self.is_running and self.running is not None and await asyncio.to_thread(self.running.is_ready)

    @property
    def _pid_file(self) -> Path:
        return self.directory / f"{self.name}-engine.pid"


class Fleet:
    """All daemons of a group."""

    def __init__(self, members: list[Member]) -> None:
        self.members = members
        self.ended_by_themselves: list[str] = []
        """What ended without having been told to, with the end of its log."""

    async def start(self) -> None:
        """Start all and return once they are ready."""
        for member in self.members:
            member.start()
        for member in self.members:
            assert member.running is not None
            await member.running.ready(START_SECONDS)

    async def revive(self) -> None:
        """Start again whoever has ended, taking note of those who should not have."""
        for member in self.members:
            running = member.running
            if running is None or running.child.exit_code is None:
                continue
            if not member.expected_to_end:
                tail = [line for line in running.child.output().splitlines() if '"info"' not in line][-8:]
                self.ended_by_themselves.append(
                    f"{running.child.name} ended with exit code {running.child.exit_code}:\n"
                    + "\n".join(tail)
                )
            member.start()

    async def are_ready(self) -> bool:
        """Whether all run and are ready."""
        return all(await asyncio.gather(*(member.is_ready() for member in self.members)))

    async def owed(self) -> float:
        """Lists that are owed by all daemons together."""
        found = 0.0
        for member in self.members:
            assert member.running is not None
            metrics = await asyncio.to_thread(member.running.metrics)
            found += metrics.get("mtgr_owed_users", 1.0) + metrics.get("mtgr_consumer_lag", 0.0)
        return found

    async def end(self) -> None:
        """SIGTERM to all at once; each must end in good order."""
        codes = await asyncio.gather(*(member.end(60) for member in self.members))
        if any(codes):
            raise AssertionError(f"the daemons ended with {codes}, in {self.members[0].directory}")

    def close(self) -> None:
        """Leave no process behind."""
        for member in self.members:
            if member.running is not None:
                member.running.kill()
            if (pid := member.engine_pid()) is not None:  # it would end by itself, were it not frozen
                with contextlib.suppress(ProcessLookupError):
                    if (
                        Path(f"/proc/{pid}/comm").exists()
                        and Path(f"/proc/{pid}/comm").read_text() == "cat\n"
                    ):
                        os.kill(pid, signal.SIGKILL)


class Owners:
    """Which daemon made a list, and the how-manieth time that it had the partition: by its log and the list's time."""

    def __init__(self, fleet: Fleet) -> None:
        self._began: dict[tuple[str, int], list[int]] = {}
        for member in fleet.members:
            for maker, log in member.logs:
                for line in log.read_text(errors="replace").splitlines():
                    if '"partition_restored"' in line:
                        entry = json.loads(line)
                        moment = datetime.fromisoformat(entry["timestamp"].replace("Z", "+00:00"))
                        began = int(moment.timestamp() * 1000)
                        self._began.setdefault((maker, entry["partition"]), []).append(began)

    def __call__(self, value: RecommendationList) -> str:
        maker = value.model.version
        began = self._began.get((maker, value.trigger.partition), [])
        return f"{maker}, time {bisect_right(began, value.generated_at_ms)}"


class Disk:
    """A small file system in memory; None can be made where this user must not mount."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MEBIBYTES}m", "mtgr-chaos", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise PermissionError(f"no file system can be mounted: {done.stderr.strip()}")

    @classmethod
    def make(cls, path: Path) -> Disk | None:
        """A file system, None where it cannot be had."""
        try:
            return cls(path)
        except (OSError, FileNotFoundError):
            return None

    def close(self) -> None:
        """Unmount it, with all that is in it."""
        subprocess.run(["umount", "-l", str(self.path)], capture_output=True, check=False)


def fill(disk: Path) -> Path:
    """Leave no byte free on a file system; returns the file that takes them."""
    ballast = disk / "ballast"
    size = 1 << 20
    with ballast.open("wb", buffering=0) as file:
        while size:
            try:
                file.write(b"\0" * size)
            except OSError:
                size //= 2
    return ballast


async def until(condition: object, what: str, within: float) -> float:
    """Wait for a condition of `eventually`; returns the seconds that took."""
    started = time.monotonic()
    await eventually(condition, what, within=within)  # type: ignore[arg-type]
    return time.monotonic() - started
