"""The daemon as a process of its own, started and watched from outside as an operator would."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families

from stream.demo.broker import free_port
from stream.demo.processes import Child

_HTTP_SECONDS: Final = 5.0


class DaemonProcess:
    """`mtgr-stream run` with these settings (`group.key` to value), its config and log under `directory`."""

    def __init__(
        self,
        directory: Path,
        settings: Mapping[str, object],
        *,
        name: str = "daemon",
        prefix: Sequence[str] = (),
    ) -> None:
        """`prefix` stands before the command, such as `taskset -c 0`."""
        directory.mkdir(parents=True, exist_ok=True)
        port = settings.get("http.port") or free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.config = directory / f"{name}.toml"
        self.config.write_text(_toml({**settings, "http.port": port}))
        command = [*prefix, sys.executable, "-m", "stream", "run", "--config", str(self.config)]
        self.child = Child(command, directory / f"{name}.log", name=name)

    def wait_ready(self, timeout: float) -> None:
        """Return when /readyz says so; raises ChildFailed with the end of the log."""
        self.child.wait_until(self.is_ready, timeout)

    def is_ready(self) -> bool:
        """Whether /readyz answers 200."""
        return self._get("/readyz")[0] == 200

    def readiness(self) -> dict[str, Any]:
        """What /readyz says; empty while nothing answers."""
        body = self._get("/readyz")[1]
        return dict(json.loads(body)) if body else {}

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics by name, summed over its labels; empty while nothing answers."""
        samples: dict[str, float] = {}
        for family in text_string_to_metric_families(self._get("/metrics")[1]):
            for sample in family.samples:
                if "le" not in sample.labels:
                    samples[sample.name] = samples.get(sample.name, 0.0) + sample.value
        return samples

    def resident_bytes(self) -> int:
        """Memory of the daemon itself, without the engine's process."""
        return int(self.metrics().get("process_resident_memory_bytes", 0))

    def stop(self, timeout: float = 60.0) -> int:
        """SIGTERM, which drains; returns the exit code."""
        return self.child.stop(timeout)

    def __enter__(self) -> DaemonProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(self.url + path, timeout=_HTTP_SECONDS) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as refusal:
            return refusal.code, refusal.read().decode()
        except OSError:
            return 0, ""


def _toml(settings: Mapping[str, object]) -> str:
    groups: dict[str, list[str]] = {}
    for key, value in settings.items():
        group, field = key.split(".")
        # JSON's strings, numbers and booleans are TOML's too
        shown = json.dumps(str(value) if isinstance(value, Path) else value)
        groups.setdefault(group, []).append(f"{field} = {shown}\n")
    return "\n".join(f"[{group}]\n{''.join(lines)}" for group, lines in groups.items())
