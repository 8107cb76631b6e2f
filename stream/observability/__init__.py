"""What the daemon tells of itself: metrics, health and logs.

Each is imported when it is first asked for: a tool that only logs does not wait for an HTTP server's modules.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from stream.observability.health import Health
    from stream.observability.http import HttpEndpoint
    from stream.observability.logs import configure_logging
    from stream.observability.metrics import Metrics

__all__ = ["Health", "HttpEndpoint", "Metrics", "configure_logging"]

_MODULES: Final = {
    "Health": "health", "HttpEndpoint": "http", "Metrics": "metrics", "configure_logging": "logs"
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
