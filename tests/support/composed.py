"""Services of docker/compose.yaml run one by one by the `docker` command, as the file describes them.

Compose itself is a plugin that not every engine has; what is tested is what the file gives a service, not Compose.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())
OUR_IMAGE = "mtgr-stream"
OURS = [name for name, service in COMPOSE["services"].items() if service["image"] == OUR_IMAGE]


def docker(*arguments: str, given: str | None = None, seconds: float = 60) -> str:
    """What the command writes to standard output; an AssertionError with its standard error where it fails."""
    done = subprocess.run(
        ["docker", *arguments], input=given, capture_output=True, text=True, timeout=seconds, check=False
    )
    assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr or done.stdout}"
    return done.stdout


def output(container: str) -> list[str]:
    """The lines that a container wrote, to either stream."""
    done = subprocess.run(
        ["docker", "logs", container], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
    )
    return done.stdout.splitlines()


class Composed:
    """A network with services of the compose file in it, their volumes and names prefixed; `remove` ends all."""

    def __init__(self, prefix: str, variables: dict[str, str]) -> None:
        self.prefix = prefix
        self._variables = variables
        self._containers: list[str] = []
        self._volumes: set[str] = set()
        docker("network", "create", prefix)

    def start(self, service: str) -> str:
        """Run the service in the background; returns its container's name."""
        command = COMPOSE["services"][service].get("command", [])
        docker("run", "--detach", "--publish-all", *self._options(service), *command)
        return self._containers[-1]

    def run(self, service: str, *command: str, given: str = "", seconds: float = 120) -> str:
        """Run a command of the image with all that confines the service, to its end; returns its output."""
        return docker(
            *("run", "--interactive", *self._options(service)), *command, given=given, seconds=seconds
        )

    def remove(self) -> None:
        """Remove containers, volumes and the network."""
        if self._containers:
            docker("rm", "--force", *self._containers)
        if self._volumes:
            docker("volume", "rm", *self._volumes)
        docker("network", "rm", self.prefix)

    def _options(self, service: str) -> list[str]:
        """Everything but ports, which are the engine's to choose here, and dependencies, which the test keeps."""
        described: dict[str, Any] = COMPOSE["services"][service]
        self._containers.append(f"{self.prefix}-{service}-{len(self._containers)}")
        options = [f"--name={self._containers[-1]}", f"--network={self.prefix}", f"--network-alias={service}"]
        options += [f"--env={key}={value}" for key, value in described.get("environment", {}).items()]
        options += [f"--tmpfs={path}" for path in described.get("tmpfs", [])]
        options += [f"--cap-drop={name}" for name in described.get("cap_drop", [])]
        options += [f"--security-opt={option}" for option in described.get("security_opt", [])]
        options += [f"--volume={self._volume(volume)}" for volume in described.get("volumes", [])]
        options += ["--read-only"] if described.get("read_only") else []
        options += ["--init"] if described.get("init") else []
        options += [f"--shm-size={size}"] if (size := described.get("shm_size")) else []
        return ["--pull=never", *options, described["image"]]

    def _volume(self, volume: str) -> str:
        source, _, target = volume.rpartition("}:") if volume.startswith("${") else volume.partition(":")
        if source.startswith("${"):
            return f"{self._variables[source[2:].partition(':')[0]]}:{target}"
        self._volumes.add(f"{self.prefix}-{source}")
        return f"{self.prefix}-{source}:{target}"
