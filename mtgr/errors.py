"""Errors, one class for each reaction they demand."""

from __future__ import annotations


class InputError(Exception):
    """A config, checkpoint, data file or argument is wrong: say so in one line and exit with code 2."""


class RequestRefused(Exception):
    """The model cannot serve this one request, however often it is tried: dead-letter it."""


class EngineFailed(Exception):
    """The engine broke while serving: restart it and try the requests again."""
