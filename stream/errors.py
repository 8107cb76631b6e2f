"""What stops the daemon."""

from __future__ import annotations


class Fatal(Exception):
    """The daemon cannot go on without somebody's help: it stops, having committed nothing that is not durable."""
