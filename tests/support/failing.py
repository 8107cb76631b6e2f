"""Runs a daemon whose commits raise what no code expects: `python failing.py python -m stream ...`."""

from __future__ import annotations

import sys
from typing import Any


def main() -> None:
    from stream.cli import main as run
    from stream.commits import AtLeastOnce

    async def fail(*args: Any) -> Any:
        raise TypeError("planted")

    AtLeastOnce.commit = fail  # type: ignore[method-assign,assignment]
    # as `python -m stream` would see it
    sys.argv = ["mtgr-stream", *sys.argv[sys.argv.index("stream") + 1 :]]
    run()


if __name__ == "__main__":
    main()
