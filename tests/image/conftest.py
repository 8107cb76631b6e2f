"""Tests of the image itself: `make image-test` builds it and runs them; they are skipped where it is not built."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

import pytest
from composed import COMPOSE, OUR_IMAGE

_HERE = Path(__file__).parent


@functools.cache
def _missing() -> str | None:
    """What these tests lack on this machine, if anything."""

    def fails(*arguments: str) -> bool:
        try:
            done = subprocess.run(["docker", *arguments], capture_output=True, timeout=15, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return True
        return done.returncode != 0

    if fails("version"):
        return "no Docker engine answers"
    images = (OUR_IMAGE, COMPOSE["services"]["kafka"]["image"])
    if missing := [image for image in images if fails("image", "inspect", image)]:
        return f"the Docker engine has no image {' and no '.join(missing)}: make image-test builds them"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is here where it cannot run, saying what is missing."""
    here = [item for item in items if _HERE in item.path.parents]
    if here and (reason := _missing()):
        for item in here:
            item.add_marker(pytest.mark.skip(reason=reason))
