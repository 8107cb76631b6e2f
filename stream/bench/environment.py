"""What every benchmark needs: a broker, and settings with topics of their own."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stream.demo.daemon import DaemonProcess
from stream.settings import Settings, load_settings


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has taken, all threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Bench:
    """One broker, and a name that keeps the topics, group and state of every run apart."""

    def __init__(self, servers: str, directory: Path) -> None:
        self._servers = servers
        self._runs = 0
        self.directory = directory

    def settings(self, **changes: object) -> tuple[Settings, dict[str, object]]:
        """Settings for one run, as the daemon and this process use them; keys are `group__key`."""
        self._runs += 1
        name = f"bench-{self._runs}-{int(time.time())}"
        values: dict[str, object] = {
            "kafka.bootstrap_servers": self._servers,
            "kafka.group_id": name,
            "topics.events": f"{name}-events",
            "topics.lists": f"{name}-lists",
            "topics.dead_letters": f"{name}-dead",
            "state.directory": str(self.directory / name / "state"),
            **{key.replace("__", "."): value for key, value in changes.items()},
        }
        overrides = [f"{key}={_toml(value)}" for key, value in values.items()]
        return load_settings(None, {}, overrides), values

    def settings_to_fold(self, checkpoint: Path, **changes: object) -> tuple[Settings, dict[str, object]]:
        """The same for a daemon that folds and commits, and has no list due for a day."""
        return self.settings(
            model__checkpoint=str(checkpoint.absolute()),
            generator__kind="torch",
            trigger__min_events=1_000_000,
            trigger__quiet_period_ms=0,
            trigger__max_wait_ms=86_400_000,
            stream__max_owed_requests=1_000_000_000,
            **changes,
        )

    @contextmanager
    def daemon(self, values: Mapping[str, object], cores: str | None = None) -> Iterator[DaemonProcess]:
        """The daemon as a process, on these cores alone; it has begun to start, no more."""
        directory = self.directory / str(values["kafka.group_id"])
        prefix = ("taskset", "-c", cores) if cores is not None else ()
        with DaemonProcess(directory, values, prefix=prefix) as daemon:
            yield daemon


def _toml(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str | Path) else str(value).lower()
