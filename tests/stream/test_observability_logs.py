"""Promises of stream.observability.logs: every line can be read by whoever reads it."""

from __future__ import annotations

import io
import json
import logging
import warnings
from datetime import datetime, timedelta
from typing import Any

import pytest
import structlog

from stream.observability import configure_logging
from stream.settings import LogSettings, Secret


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _own_logging_of_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is set for vLLM is gone after the test."""
    monkeypatch.setenv("VLLM_CONFIGURE_LOGGING", "0")


def logged(stream: io.StringIO) -> list[dict[str, Any]]:
    """The lines of a JSON log."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in stream.getvalue().splitlines()]


def test_a_pipe_gets_json_lines() -> None:
    """Each event is one JSON object with an ISO time in UTC, its level, its logger and its keys."""
    stream = io.StringIO()
    configure_logging(LogSettings(), stream)
    structlog.get_logger("stream.commits").info("commit_finished", partition=3, lists=42)
    (line,) = logged(stream)
    assert list(line)[:4] == ["timestamp", "level", "logger", "event"]
    assert datetime.fromisoformat(line.pop("timestamp")).utcoffset() == timedelta(0)
    assert line == {
        "level": "info",
        "logger": "stream.commits",
        "event": "commit_finished",
        "partition": 3,
        "lists": 42,
    }


def test_a_terminal_gets_coloured_lines() -> None:
    """A person sees lines to read, not JSON."""
    stream = Terminal()
    configure_logging(LogSettings(), stream)
    structlog.get_logger("x").info("commit_finished", partition=3)
    assert "commit_finished" in stream.getvalue()
    assert "\x1b[" in stream.getvalue()
    assert not stream.getvalue().startswith("{")


def test_format_can_be_chosen() -> None:
    """JSON on a terminal, and plain lines without colours in a pipe, on demand."""
    terminal, pipe = Terminal(), io.StringIO()
    configure_logging(LogSettings(format="json"), terminal)
    structlog.get_logger("x").info("a")
    assert logged(terminal)[0]["event"] == "a"
    configure_logging(LogSettings(format="console"), pipe)
    structlog.get_logger("x").info("a")
    assert "a" in pipe.getvalue()
    assert "\x1b[" not in pipe.getvalue()


def test_standard_logging_and_warnings_take_the_same_way() -> None:
    """What aiokafka, aiohttp, asyncio and Python itself say is in the same form."""
    stream = io.StringIO()
    configure_logging(LogSettings(), stream)
    logging.getLogger("aiokafka.cluster").error("no broker at %s", "a:1")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", UserWarning, stacklevel=1)
    broker, warning = logged(stream)
    assert (broker["logger"], broker["level"], broker["event"]) == (
        "aiokafka.cluster",
        "error",
        "no broker at a:1",
    )
    assert (warning["logger"], warning["level"]) == ("py.warnings", "warning")


def test_level_holds_for_all() -> None:
    """Below the level nothing is written, by whichever logger."""
    stream = io.StringIO()
    configure_logging(LogSettings(level="warning"), stream)
    structlog.get_logger("x").info("a")
    logging.getLogger("y").info("b")
    structlog.get_logger("x").warning("c")
    logging.getLogger("y").warning("d")
    assert [line["event"] for line in logged(stream)] == ["c", "d"]


def test_exceptions_are_structured_and_hold_no_local_variables() -> None:
    """A traceback in JSON is data, without the values of variables, which may be secret."""
    stream = io.StringIO()
    configure_logging(LogSettings(), stream)

    def fail(password: str) -> None:
        raise ValueError("refused")

    try:
        fail("hunter2")
    except ValueError:
        structlog.get_logger("x").exception("failed")
        logging.getLogger("y").exception("failed")
    for line in logged(stream):
        (exception,) = line["exception"]
        assert exception["exc_type"] == "ValueError"
        assert exception["exc_value"] == "refused"
        assert exception["frames"][-1]["name"] == "fail"
    assert "hunter2" not in stream.getvalue()


def test_exceptions_are_readable_on_a_terminal() -> None:
    """A person sees the traceback as Python prints it."""
    stream = Terminal()
    configure_logging(LogSettings(), stream)
    try:
        raise ValueError("refused")
    except ValueError:
        structlog.get_logger("x").exception("failed")
    assert "Traceback (most recent call last):" in stream.getvalue()
    assert "ValueError: refused" in stream.getvalue()


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_secrets_are_masked(stream: io.StringIO) -> None:
    """A password does not get into the log, neither as a Secret nor under its own name."""
    configure_logging(LogSettings(level="debug"), stream)
    structlog.get_logger("x").info("connecting", sasl_password="hunter2", user=Secret("hunter2"))
    logging.getLogger("y").info("connecting %s", Secret("hunter2"))
    logging.getLogger("aiokafka.conn").debug("SaslAuthenticateRequest(b'\\0me\\0hunter2')")
    assert "connecting" in stream.getvalue()
    assert "hunter2" not in stream.getvalue()


def test_values_that_json_lacks_are_shown_all_the_same() -> None:
    """A log call never fails for what it is given: bytes, NaN, sets and odd keys have a form."""
    stream = io.StringIO()
    configure_logging(LogSettings(), stream)
    structlog.get_logger("x").info(
        "odd", raw=b"\xff", number=float("nan"), keys={("t", 1): 2}, members={1}, text="\ud800", fine=[1, "a"]
    )
    (line,) = logged(stream)
    assert line["fine"] == [1, "a"]
    assert line["number"] == "nan"
    assert line["keys"] == "{('t', 1): 2}"


def test_context_is_on_every_line() -> None:
    """What is bound to the context, such as a partition, is on each line logged in it."""
    stream = io.StringIO()
    configure_logging(LogSettings(), stream)
    with structlog.contextvars.bound_contextvars(partition=3):
        structlog.get_logger("x").info("a")
        logging.getLogger("y").info("b")
    assert [line["partition"] for line in logged(stream)] == [3, 3]


def test_configuring_again_replaces() -> None:
    """A second call moves the log; no line is written twice."""
    first, second = io.StringIO(), io.StringIO()
    configure_logging(LogSettings(), first)
    configure_logging(LogSettings(), second)
    structlog.get_logger("x").info("a")
    assert first.getvalue() == ""
    assert len(logged(second)) == 1
