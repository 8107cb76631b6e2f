"""The systems that the daemon is compared with: how each is run, and how what it keeps is read back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from stream.bench.rivals.histories import Row, rows_of_packed, rows_of_plain

ENVIRONMENTS: Final = Path(".rivals")
"""Where `make rivals` puts the environments, from the project's folder."""

_ROOT: Final = Path(__file__).parents[3]


class Rival(Struct, frozen=True):
    """A stream processor with its settings. `options` go to its job, which is measured for so many seconds at most."""

    title: str
    system: Literal["quix", "faust"]
    package: str
    delivery: str
    commits: str
    seconds: float
    options: Mapping[str, Any]

    @property
    def python(self) -> Path:
        """Of its environment."""
        return ENVIRONMENTS.absolute() / self.system / "bin" / "python"

    @property
    def version(self) -> str:
        """The version that is compared, from its list of requirements."""
        lines = (Path(__file__).parent / f"{self.system}.txt").read_text().splitlines()
        return next(line.partition("==")[2] for line in lines if line.startswith(f"{self.package}=="))

    def command(self, servers: str, group: str, topic: str, partitions: int, directory: Path) -> list[str]:
        """The program that does the job until SIGTERM, on one core."""
        options = {
            "servers": servers,
            "group": group,
            "topic": topic,
            "partitions": partitions,
            "directory": str(directory),
            **self.options,
        }
        module = f"stream.bench.rivals.{self.system}_job"
        return ["taskset", "-c", "0", str(self.python), "-m", module, json.dumps(options)]

    @property
    def environment(self) -> dict[str, str]:
        """Variables for the program: it finds this package, and nothing of the project's environment."""
        return {"PYTHONPATH": str(_ROOT)}

    def changelog(self, group: str, topic: str) -> str:
        """The topic that its state is kept in."""
        return (
            f"changelog__{group}--{topic}--default"
            if self.system == "quix"
            else f"{group}-histories-changelog"
        )

    def key(self, user_id: str) -> bytes:
        """Of a user in the changelog."""
        if self.system == "quix":
            return user_id.encode() + b'|"history"'
        return user_id.encode() if self.options["tuned"] else json.dumps(user_id).encode()

    def rows(self, value: bytes) -> list[Row]:
        """What a value of the changelog keeps of a user."""
        return rows_of_packed(value) if self.options["tuned"] else rows_of_plain(msgspec.json.decode(value))


def _quix(title: str, delivery: str, commits: str, **options: object) -> Rival:
    return Rival(title, "quix", "quixstreams", delivery, commits, 15.0, options)


def _faust(title: str, commits: str, **options: object) -> Rival:
    return Rival(title, "faust", "faust-streaming", "at least once", commits, 10.0, options)


RIVALS: Final[Sequence[Rival]] = (
    _quix("Quix Streams, defaults", "at least once", "5 s", tuned=False),
    _quix(
        "Quix Streams, tuned",
        "at least once",
        "1 s",
        tuned=True,
        guarantee="at-least-once",
        commit_seconds=1.0,
    ),
    _quix(
        "Quix Streams, tuned", "exactly once", "1 s", tuned=True, guarantee="exactly-once", commit_seconds=1.0
    ),
    _faust("faust-streaming, defaults", "2.8 s", tuned=False),
    _faust("faust-streaming, tuned", "1 s", tuned=True, commit_seconds=1.0),
)
