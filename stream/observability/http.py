"""The HTTP endpoint for orchestrators, Prometheus and operators: /healthz, /readyz, /metrics and /hot."""

from __future__ import annotations

import errno
import socket
import time
from types import TracebackType
from typing import Final, Self

import structlog
from aiohttp import web
from prometheus_client.exposition import choose_encoder

from mtgr.errors import InputError
from stream.hot_keys import HotKeys, Share
from stream.observability.health import Health
from stream.observability.metrics import Metrics
from stream.settings import HttpSettings

log = structlog.get_logger(__name__)

_LOOPBACK: Final = frozenset({"127.0.0.1", "::1"})
_HOT_USERS: Final = 20
_SHUTDOWN_SECONDS: Final = 1.0  # a scraper that keeps its connection open must not hold the daemon up


class HttpEndpoint:
    """Serves health and metrics while entered: `async with HttpEndpoint(settings.http, metrics, health)`.

    Entering raises InputError when the address cannot be bound.
    """

    def __init__(
        self, settings: HttpSettings, metrics: Metrics, health: Health, hot_keys: HotKeys | None = None
    ) -> None:
        """`hot_keys` is what /hot shows, to callers on this machine alone: user ids are nobody else's business."""
        self._hot = hot_keys
        self._settings = settings
        self._metrics = metrics
        self._health = health
        self._runner = web.AppRunner(self._app(), access_log=None, shutdown_timeout=_SHUTDOWN_SECONDS)

    @property
    def port(self) -> int:
        """The port that is bound, also where the settings asked for any free one."""
        return int(self._runner.addresses[0][1])

    async def __aenter__(self) -> Self:
        host, port = self._settings.host, self._settings.port
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as error:
            await self._runner.cleanup()
            raise _refusal(host, port, error) from None
        log.info("http_listening", host=host, port=self.port)
        return self

    async def __aexit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._runner.cleanup()

    def _app(self) -> web.Application:
        app = web.Application()
        app.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._scrape),
                web.get("/hot", self._hot_view),
            ]
        )
        return app

    async def _healthz(self, request: web.Request) -> web.Response:
        health = self._health
        return web.json_response(
            {"alive": health.is_alive, "reason": health.fatal_reason}, status=200 if health.is_alive else 503
        )

    async def _readyz(self, request: web.Request) -> web.Response:
        health = self._health
        components = {
            name: {"ready": reason is None, "reason": reason} for name, reason in health.reasons.items()
        }
        return web.json_response(
            {"ready": health.is_ready, "reason": health.fatal_reason, "components": components},
            status=200 if health.is_ready else 503,
        )

    async def _hot_view(self, request: web.Request) -> web.Response:
        if self._hot is None:
            raise web.HTTPNotFound
        if request.remote not in _LOOPBACK:
            return web.json_response({"error": "only for callers on the daemon's own machine"}, status=403)
        now = time.monotonic()
        return web.json_response(
            {
                "window_seconds": self._hot.window_seconds,
                "partitions": [_shown(share, "partition") for share in self._hot.partitions(now)],
                "users": [_shown(share, "user_id") for share in self._hot.users(_HOT_USERS, now)],
            }
        )

    async def _scrape(self, request: web.Request) -> web.Response:
        self._metrics.refresh()
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        response = web.Response(body=encode(self._metrics.registry), headers={"Content-Type": content_type})
        response.enable_compression()
        return response


def _shown(share: Share, noun: str) -> dict[str, str | int | float]:
    return {noun: share.key, "records": share.events, "share": round(share.share, 4)}


def _refusal(host: str, port: int, error: OSError) -> InputError:
    if error.errno == errno.EADDRINUSE:
        return InputError(f"http.port = {port}: already in use on {host}; set another, or 0 for a free one")
    if error.errno == errno.EACCES:
        return InputError(f"http.port = {port}: not permitted to this user; set one above 1023")
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return InputError(f"http.host = {host}: not an address of this machine")
    return InputError(f"http: cannot listen on {host}:{port}: {error.strerror}")
