"""What the daemon tells of itself: metrics, health and logs."""

from stream.observability.health import Health
from stream.observability.http import HttpEndpoint
from stream.observability.logs import configure_logging
from stream.observability.metrics import Metrics

__all__ = ["Health", "HttpEndpoint", "Metrics", "configure_logging"]
