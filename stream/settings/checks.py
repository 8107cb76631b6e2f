"""Checks that no single type can make: formats, and settings that must agree with each other."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from msgspec import structs

from mtgr.errors import InputError
from mtgr.requests import MAX_SLATE
from stream.settings.checker import Checker
from stream.settings.groups import Settings
from stream.settings.security import check_security


def check(settings: Settings, sources: Mapping[str, str]) -> Settings:
    """The settings, with every secret read from its file; `sources` says where a `group.key` was set.

    Raises InputError where settings contradict each other.
    """
    checker = Checker(settings, sources)
    _check_servers(checker)
    kafka = check_security(checker, settings.kafka)
    _check_topics(checker, settings)
    _check_generator(checker)
    checker.at_most("trigger.quiet_period_ms", "trigger.max_wait_ms")
    checker.at_most("kafka.session_timeout_ms", "kafka.rebalance_timeout_ms")
    # a daemon that still drains when the rebalance ends has lost its partitions, and the work with them
    checker.at_most("stream.drain_deadline_seconds", "kafka.rebalance_timeout_ms", 1_000)
    # nor does it ask for events while it drains
    checker.at_most("stream.drain_deadline_seconds", "kafka.max_poll_interval_ms", 1_000)
    if settings.stream.delivery == "exactly_once":
        # a daemon that keeps its partitions over a pause keeps its transactions too
        checker.at_most("kafka.session_timeout_ms", "stream.transaction_timeout_ms")
    checker.at_most("stream.max_event_bytes", "stream.max_in_flight_mebibytes", 1, 1 << 20)
    return structs.replace(settings, kafka=kafka)


def _check_servers(checker: Checker) -> None:
    for server in checker.value("kafka.bootstrap_servers").split(","):
        host, colon, port = server.strip().rpartition(":")
        if not (colon and host and port.isascii() and port.isdigit() and 0 < int(port) < 65_536):
            checker.refuse("kafka.bootstrap_servers", f"{server.strip()!r} is not host:port")


def _check_topics(checker: Checker, settings: Settings) -> None:
    topics = settings.topics
    named = {
        "topics.events": topics.events,
        "topics.lists": topics.lists,
        "topics.dead_letters": topics.dead_letters,
        "topics.changelog": settings.changelog_topic,
    }
    if topics.videos is not None:
        named["topics.videos"] = topics.videos
    seen: dict[str, str] = {}
    for key, name in named.items():
        if topics.changelog is None and key == "topics.changelog" and not _is_topic(name):
            right = f"{name!r}, made of {checker.shown('kafka.group_id')}, is no valid topic name: set one"
            checker.refuse(key, right)
        if name in {".", ".."}:
            checker.refuse(key, "Kafka takes no topic of this name")
        # Kafka's metrics make no difference between '.' and '_', so it refuses two such names
        other = seen.setdefault(name.replace(".", "_"), key)
        if other != key:
            checker.refuse(
                key, f"{name!r} must differ from {checker.shown(other)}, and by more than '.' and '_'"
            )


def _is_topic(name: str) -> bool:
    return len(name) <= 249 and all(
        character.isascii() and (character.isalnum() or character in "._-") for character in name
    )


def _check_generator(checker: Checker) -> None:
    if checker.value("generator.strategy") == "slate" and checker.value("generator.list_length") > MAX_SLATE:
        right = f"must not be above {MAX_SLATE} with {checker.shown('generator.strategy')}"
        checker.refuse("generator.list_length", right)
    kind, url = checker.value("generator.kind"), checker.value("generator.url")
    for key in ("tensor_parallel_size", "replicas"):
        if kind != "vllm" and checker.value(f"generator.{key}") > 1:
            checker.refuse(f"generator.{key}", f"must be 1 with {checker.shown('generator.kind')}")
    if kind == "server":
        if url is None:
            checker.refuse("generator.url", f"required by {checker.shown('generator.kind')}")
        if "@" in url:
            raise InputError("generator.url: must hold no user name or password")
        try:
            parts = urlsplit(url)
            valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        except ValueError:
            valid = False
        if not valid:
            checker.refuse("generator.url", "expected http://host:port")
    elif url is not None:
        checker.refuse(
            "generator.url", f"is used by the server only, not with {checker.shown('generator.kind')}"
        )
