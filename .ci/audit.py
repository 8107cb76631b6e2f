"""Look for known weaknesses and withdrawn versions among the packages that constraints.txt pins.

Weaknesses are looked up by pip-audit, at PyPI or, where that does not tell, at OSV; withdrawn ("yanked") versions by
uv, which needs the package index alone. Exit code 0 where nothing was found, 1 where something was, 3 where
nothing was found and no service could be asked for weaknesses.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import click

ROOT: Final = Path(__file__).parents[1]
UV: Final = str(ROOT / ".venv/bin/uv")
PINS: Final = str(ROOT / "constraints.txt")
SERVICES: Final = ("pypi", "osv")
_AUDIT: Final = [
    "tool",
    "run",
    "--quiet",
    "pip-audit@2.10.1",
    "--disable-pip",
    "--no-deps",
    "--requirement",
    PINS,
]
_REPORT: Final = ["--format", "json", "--progress-spinner", "off", "--timeout", "5"]
_RESOLVE: Final = [
    "pip",
    "compile",
    "--no-deps",
    "--no-header",
    "--no-annotate",
    "--python-version",
    "3.11",
    PINS,
]
_SECONDS: Final = 300


def main() -> int:
    """Print what was found; returns the exit code."""
    withdrawn = withdrawn_versions()
    for line in withdrawn:
        click.echo(line)
    for service in SERVICES:
        packages = known_weaknesses(service)
        if packages is not None:
            break
        click.echo(f"{service} could not be asked for known weaknesses")
    else:
        click.echo("NOT AUDITED: no service that keeps known weaknesses is in reach of this machine")
        return 1 if withdrawn else 3
    found = [(package, weakness) for package in packages for weakness in package.get("vulns", [])]
    for package, weakness in found:
        mended = ", ".join(weakness["fix_versions"]) or "no version yet"
        names = ", ".join([weakness["id"], *weakness.get("aliases", [])])
        click.echo(f"{package['name']}=={package['version']}: {names}; mended in {mended}")
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    if unknown:
        click.echo(f"{service} knows nothing of {', '.join(unknown)}")
    click.echo(
        f"audited {len(packages) - len(unknown)} of {len(packages)} pinned packages by {service}: "
        f"{len(found)} known weaknesses, {len(withdrawn)} withdrawn versions"
    )
    return 1 if found or withdrawn else 0


def withdrawn_versions() -> list[str]:
    """What uv says of pinned versions that were withdrawn from the index, with the reasons their makers gave."""
    done = _uv(_RESOLVE)
    if done.returncode:
        return [f"the pins cannot be resolved: {done.stderr.strip()}"]
    return [line for line in done.stderr.splitlines() if line.startswith("warning:") and " is yanked" in line]


def known_weaknesses(service: str) -> list[dict[str, Any]] | None:
    """What pip-audit reports of each package; None where the service answers for none of them."""
    done = _uv([*_AUDIT, *_REPORT, "--vulnerability-service", service])
    try:
        packages: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        return None
    return packages if any("skip_reason" not in package for package in packages) else None


def _uv(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    command = [UV, *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"no answer in {_SECONDS} s")


if __name__ == "__main__":
    sys.exit(main())
