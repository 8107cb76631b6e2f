"""How every part reaches Kafka: client options out of the settings, and connecting with patience."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol, TypeVar

import structlog
from aiokafka.errors import KafkaError, KafkaTimeoutError
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_exponential_jitter

from mtgr.errors import InputError
from stream.authentication import tls_context, token_provider
from stream.refusals import is_by_token, not_allowed, why_refused
from stream.settings import KafkaSettings

log = structlog.get_logger(__name__)

_FIRST_RETRY_SECONDS: Final = 0.2
_LONGEST_RETRY_SECONDS: Final = 5.0
_STOP_SECONDS: Final = 5.0


class KafkaUnreachable(InputError):
    """No broker answered for kafka.connect_timeout_seconds."""


class Startable(Protocol):
    """A client of aiokafka: a consumer or a producer."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


Client = TypeVar("Client", bound=Startable)


def client_options(kafka: KafkaSettings) -> dict[str, Any]:
    """Keyword arguments that every client of aiokafka takes: addresses, name, encryption and authentication.

    Raises InputError naming the file of certificates or keys, or the provider of tokens, that cannot be used.
    """
    options: dict[str, Any] = {
        "bootstrap_servers": [server.strip() for server in kafka.bootstrap_servers.split(",")],
        "client_id": kafka.client_id,
        "security_protocol": kafka.security_protocol,
    }
    if "SSL" in kafka.security_protocol:
        options["ssl_context"] = tls_context(kafka)
    if kafka.security_protocol.startswith("SASL"):
        options["sasl_mechanism"] = kafka.sasl_mechanism
        if kafka.sasl_mechanism == "OAUTHBEARER":
            options["sasl_oauth_token_provider"] = token_provider(kafka)
        else:
            options["sasl_plain_username"] = kafka.sasl_username
            options["sasl_plain_password"] = kafka.sasl_password.reveal() if kafka.sasl_password else None
    return options


def producer_options(kafka: KafkaSettings) -> dict[str, Any]:
    """Keyword arguments for an idempotent producer, which waits for all in-sync replicas."""
    compression = None if kafka.compression == "none" else kafka.compression
    return {**client_options(kafka), "compression_type": compression, "enable_idempotence": True}


async def start(client: Startable, kafka: KafkaSettings) -> None:
    """Start a client, again and again with growing pauses while no broker answers.

    The client is stopped where this fails. Raises KafkaUnreachable when that has lasted for
    kafka.connect_timeout_seconds, KafkaRefused as soon as a broker answers and does not let this client in, or not do
    what it is for.
    """

    options = client_options(kafka)

    async def check() -> None:
        if (refusal := await why_refused(kafka, options)) is not None:
            raise refusal

    async def start_once() -> None:
        if is_by_token(options):
            await check()
        try:
            await client.start()
        except Exception as error:
            if kafka.security_protocol != "PLAINTEXT" and is_connection_error(error):
                await check()
            raise

    attempts = AsyncRetrying(
        wait=wait_exponential_jitter(initial=_FIRST_RETRY_SECONDS, max=_LONGEST_RETRY_SECONDS),
        retry=retry_if_exception(is_connection_error),
        before_sleep=_log_retry,
        reraise=True,
    )
    try:
        async with asyncio.timeout(kafka.connect_timeout_seconds):
            await attempts(start_once)
    except TimeoutError:
        await stop(client)
        raise KafkaUnreachable(
            f"kafka.bootstrap_servers = {kafka.bootstrap_servers}: no broker answered for "
            f"{kafka.connect_timeout_seconds:g} seconds; is Kafka running there, and reachable by "
            f"{kafka.security_protocol}?"
        ) from None
    except BaseException as error:
        await stop(client)
        if isinstance(error, KafkaError) and (refusal := not_allowed(kafka, error)) is not None:
            raise refusal from error
        raise


async def stop(client: Startable, seconds: float | None = _STOP_SECONDS) -> bool:
    """Stop a client and say whether that was done in time (None: however long it takes); never raises.

    aiokafka waits for a broker that is gone, and lets the cancellation of its own tasks out of stop().
    """
    stopping = asyncio.ensure_future(client.stop())
    try:
        await asyncio.wait({stopping}, timeout=seconds)
        if not stopping.done():
            return False
        if not stopping.cancelled() and (error := stopping.exception()) is not None:
            log.warning("client_not_stopped", client=type(client).__name__, error=str(error))
        return True
    finally:
        stopping.cancel()


@asynccontextmanager
async def connected(client: Client, kafka: KafkaSettings) -> AsyncIterator[Client]:
    """A client that is started as by `start`, and stopped at the end; KafkaRefused for what it is not allowed."""
    await start(client, kafka)
    try:
        yield client
    except KafkaError as error:
        if (refusal := not_allowed(kafka, error)) is not None:
            raise refusal from error
        raise
    finally:
        await stop(client)


def quieten() -> None:
    """Keep to the log what goes wrong: a person at a tool has no use for the steps of a connection."""
    logging.getLogger("aiokafka").setLevel(logging.ERROR)


def is_connection_error(error: BaseException) -> bool:
    """Whether trying again may help: the network or a broker failed, not the request."""
    if isinstance(error, OSError | KafkaTimeoutError):
        return True
    return isinstance(error, KafkaError) and bool(error.retriable)


def _log_retry(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    log.warning(
        "kafka_unreachable",
        attempt=state.attempt_number,
        error=str(error),
        retry_in_seconds=round(state.upcoming_sleep, 2),
    )
