"""Log set-up: one stream of structured events, JSON for machines and coloured lines for people."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from typing import Any, Final, TextIO

import structlog
from structlog.processors import ExceptionRenderer
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import EventDict, Processor, WrappedLogger

from stream.settings import LogSettings
from stream.settings.secret import MASK

_FIRST_KEYS: Final = ("timestamp", "level", "logger", "event")
_SECRET_KEYS: Final = frozenset(
    {
        "authorization",
        "password",
        "sasl_password",
        "sasl_plain_password",
        "secret",
        "ssl_key_password",
        "token",
    }
)

# vllm logs its throughput every ten seconds and its whole configuration at the start; aiokafka, at debug,
# dumps its requests with the SASL password inside.
_QUIET: Final = {"vllm": logging.WARNING, "aiokafka": logging.INFO, "asyncio": logging.INFO}


def configure_logging(settings: LogSettings, stream: TextIO | None = None) -> None:
    """Send structlog events and the standard library's records to `stream` (standard error) in one format.

    JSON is one object a line with an ISO time in UTC and exceptions as structured tracebacks, without local
    variables, which may hold secrets.
    Call it before vllm is imported, which otherwise sets up handlers of its own.
    """
    target = stream or _StandardError()
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    as_json = settings.format == "json" or (settings.format == "auto" and not target.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        _mask_secrets,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_renderers(as_json, target.isatty()),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name, quiet in _QUIET.items():
        logging.getLogger(name).setLevel(max(level, quiet))
    logging.captureWarnings(True)
    os.environ["VLLM_CONFIGURE_LOGGING"] = "0"


class _StandardError(io.TextIOBase):
    """Whatever standard error is when a line is written: a progress bar takes its place, to stand below the lines."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()

    def isatty(self) -> bool:
        return sys.stderr.isatty()


def _renderers(as_json: bool, colours: bool) -> list[Processor]:
    if not as_json:
        return [
            structlog.dev.ConsoleRenderer(
                colors=colours, exception_formatter=structlog.dev.plain_traceback, pad_event_to=0
            )
        ]
    tracebacks = ExceptionDictTransformer(show_locals=False, max_frames=30)
    return [ExceptionRenderer(tracebacks), structlog.processors.JSONRenderer(serializer=_to_json)]


def _to_json(event: EventDict, **options: Any) -> str:
    ordered = {key: event[key] for key in _FIRST_KEYS if key in event} | dict(event)
    try:
        return json.dumps(ordered, allow_nan=False, **options)
    except (TypeError, ValueError):  # a key that is no string, or a number that JSON does not have
        return json.dumps({key: _plain(value, options) for key, value in ordered.items()}, **options)


def _plain(value: object, options: dict[str, Any]) -> object:
    try:
        json.dumps(value, allow_nan=False, **options)
    except (TypeError, ValueError):
        return repr(value)
    return value


def _mask_secrets(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    for key in _SECRET_KEYS & event.keys():
        event[key] = MASK
    return event
