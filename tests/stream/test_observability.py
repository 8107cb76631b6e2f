"""Promises of stream.observability: health, metrics and the endpoint that serves them."""

from __future__ import annotations

import re
import socket
import time
from typing import Any

import aiohttp
import pytest
from partitions import likes
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from mtgr.errors import InputError
from mtgr.requests import CacheStats
from stream.hot_keys import HotKeys
from stream.observability import Health, HttpEndpoint, Metrics, http
from stream.settings import HttpSettings

ANY_PORT = HttpSettings(port=0)


async def get(endpoint: HttpEndpoint, path: str, **headers: str) -> tuple[int, Any]:
    """Status and body of an answer: JSON where it is JSON."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{endpoint.port}{path}", headers=headers) as answer,
    ):
        is_json = answer.content_type == "application/json"
        return answer.status, await (answer.json() if is_json else answer.text())


def test_ready_when_all_components_are() -> None:
    """One component that is not ready is enough to say no, and a component is not ready before it says so."""
    health = Health(["kafka", "engine"])
    assert not health.is_ready
    health.ready("kafka")
    assert not health.is_ready
    health.ready("engine")
    assert health.is_ready
    health.not_ready("partition 3", "restoring")
    assert not health.is_ready
    assert health.reasons == {"kafka": None, "engine": None, "partition 3": "restoring"}
    health.remove("partition 3")
    assert health.is_ready


def test_fatal_stands_and_keeps_its_first_reason() -> None:
    """Nothing makes a daemon ready again that cannot go on; what follows does not hide the cause."""
    health = Health(["kafka"])
    health.ready("kafka")
    health.fatal("state is corrupt")
    health.fatal("and so it goes")
    health.ready("kafka")
    assert not health.is_alive
    assert not health.is_ready
    assert health.fatal_reason == "state is corrupt"


def test_changes_of_readiness_are_logged_once() -> None:
    """The log tells when a component turned, not how often it was asked."""
    health = Health(["kafka"])
    with capture_logs() as logs:
        for _ in range(3):
            health.not_ready("kafka", "no broker answers")
        for _ in range(3):
            health.ready("kafka")
    assert [(entry["event"], entry.get("reason")) for entry in logs] == [
        ("component_not_ready", "no broker answers"),
        ("component_ready", None),
    ]


async def test_healthz_is_well_until_something_fatal() -> None:
    """An orchestrator restarts the daemon when it cannot go on, not while it waits for Kafka."""
    health = Health(["kafka"])
    async with HttpEndpoint(ANY_PORT, Metrics(), health) as endpoint:
        assert await get(endpoint, "/healthz") == (200, {"alive": True, "reason": None})
        health.fatal("restore failed")
        assert await get(endpoint, "/healthz") == (503, {"alive": False, "reason": "restore failed"})


async def test_readyz_names_who_is_not_ready_and_why() -> None:
    """An operator reads from the answer what the daemon waits for."""
    health = Health(["kafka", "engine"])
    health.ready("engine")
    async with HttpEndpoint(ANY_PORT, Metrics(), health) as endpoint:
        health.not_ready("kafka", "no broker answers")
        status, body = await get(endpoint, "/readyz")
        assert status == 503
        assert body["components"] == {
            "kafka": {"ready": False, "reason": "no broker answers"},
            "engine": {"ready": True, "reason": None},
        }
        health.ready("kafka")
        status, body = await get(endpoint, "/readyz")
        assert (status, body["ready"]) == (200, True)


async def test_metrics_are_served_in_both_formats_and_refreshed_before() -> None:
    """Prometheus reads text or OpenMetrics, and gauges are brought up to date by the scrape."""
    metrics = Metrics()
    lag = iter([7, 8])
    metrics.before_scrape(lambda: metrics.set_consumer_lag("user-events", 3, next(lag)))
    metrics.events["watch"].inc(5)
    async with HttpEndpoint(ANY_PORT, metrics, Health()) as endpoint:
        status, text = await get(endpoint, "/metrics")
        assert status == 200
        assert 'mtgr_events_total{type="watch"} 5.0' in text
        assert 'mtgr_events_total{type="share"} 0.0' in text
        assert 'mtgr_consumer_lag{partition="3",topic="user-events"} 7.0' in text
        status, text = await get(endpoint, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
        assert text.endswith("# EOF\n")
        assert re.search(r"mtgr_consumer_lag\{.*\} 8.0", text)


async def test_port_in_use_is_one_line() -> None:
    """A second daemon on one port says which setting to change."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"^http\.port = {port}: already in use on 127\.0\.0\.1; "):
            async with HttpEndpoint(HttpSettings(port=port), Metrics(), Health()):
                pass


async def test_foreign_address_is_one_line() -> None:
    """An address that is not this machine's is named."""
    with pytest.raises(InputError, match=r"^http\.host = 192\.0\.2\.1: "):
        async with HttpEndpoint(HttpSettings(host="192.0.2.1", port=0), Metrics(), Health()):
            pass


async def test_port_is_free_again_after_the_endpoint(unused_tcp_port: int) -> None:
    """Leaving gives the port back, also while a scraper keeps its connection open."""
    settings = HttpSettings(port=unused_tcp_port)
    async with aiohttp.ClientSession() as session:
        for _ in range(2):
            async with (
                HttpEndpoint(settings, Metrics(), Health()) as endpoint,
                session.get(f"http://127.0.0.1:{endpoint.port}/healthz") as answer,
            ):
                assert answer.status == 200


async def test_hot_users_are_shown_on_the_machine_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """/hot names users and partitions with their shares to a caller on this machine, and no user to any other."""
    hot = HotKeys()
    hot.note(3, likes(["a", "b", "a", "a"]), time.monotonic())
    async with HttpEndpoint(ANY_PORT, Metrics(), Health(), hot) as endpoint:
        status, body = await get(endpoint, "/hot")
        assert status == 200
        assert body["partitions"] == [{"partition": "3", "records": 4, "share": 1.0}]
        assert body["users"][0] == {"user_id": "a", "records": 3, "share": 0.75}
        monkeypatch.setattr(http, "_LOOPBACK", frozenset({"192.0.2.1"}))
        status, body = await get(endpoint, "/hot")
        assert status == 403
        assert "user_id" not in str(body)


def test_caches_are_shown_by_replica() -> None:
    """What each engine's sessions take of its cache is read at the scrape; an engine that is away shows nothing."""
    metrics = Metrics()
    caches = {"0": CacheStats(100, 60, 7, 3), "1": None}
    metrics.watch_caches(lambda: caches)
    found = families(metrics)
    values = {
        name: [(sample.labels["replica"], sample.value) for sample in found[name].samples]
        for name in found
        if name.startswith("mtgr_session_cache_")
    }
    assert values == {
        "mtgr_session_cache_blocks": [("0", 100.0)],
        "mtgr_session_cache_blocks_in_use": [("0", 60.0)],
        "mtgr_session_cache_sessions": [("0", 7.0)],
        "mtgr_session_cache_evictions": [("0", 3.0)],
    }
    caches["1"] = CacheStats(100, 0, 0, 0)
    assert len(families(metrics)["mtgr_session_cache_blocks"].samples) == 2


def families(metrics: Metrics) -> dict[str, Any]:
    """What a scrape would find, by name."""
    from prometheus_client import generate_latest

    text = generate_latest(metrics.registry).decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def test_gauges_of_a_revoked_partition_go() -> None:
    """Lag that another daemon reports by now is not reported twice; revoking twice is no error."""
    metrics = Metrics()
    for partition in (0, 1):
        metrics.set_consumer_lag("t", partition, 5)
        metrics.set_state_users("t", partition, 9)
        metrics.set_partition_owed("t", partition, 3)
        metrics.count_records("t", partition, 40)
    metrics.remove_partition("t", 0)
    metrics.remove_partition("t", 0)
    for name in ("consumer_lag", "state_users", "partition_owed_users", "partition_events"):
        samples = families(metrics)[f"mtgr_{name}"].samples
        assert {sample.labels["partition"] for sample in samples} == {"1"}


def test_every_metric_is_named_and_explained() -> None:
    """Ours start with mtgr_, have a help text, and counters stand at 0 before anything happened."""
    ours = {
        name: family
        for name, family in families(Metrics()).items()
        if not name.startswith(("python", "process"))
    }
    assert len(ours) > 25
    for name, family in ours.items():
        assert name.startswith("mtgr_")
        assert family.documentation.endswith(".")
    for name in ("mtgr_lists", "mtgr_commits", "mtgr_duplicates"):
        assert [sample.value for sample in ours[name].samples if sample.name.endswith("_total")] == [0.0]


def test_two_daemons_in_one_process_count_apart() -> None:
    """Each Metrics has a registry of its own."""
    first, second = Metrics(), Metrics()
    first.lists.inc(3)
    assert families(second)["mtgr_lists"].samples[0].value == 0.0
    assert first.dead_letters["decode"] is first.dead_letters["decode"]


def test_latencies_fall_into_useful_buckets() -> None:
    """The time from event to list is told apart from 5 ms to a minute."""
    metrics = Metrics()
    metrics.event_to_list_seconds.observe(0.06)
    buckets = {
        sample.labels["le"]: sample.value
        for sample in families(metrics)["mtgr_event_to_list_seconds"].samples
        if sample.name.endswith("_bucket")
    }
    assert buckets["0.005"] == buckets["0.05"] == 0.0
    assert buckets["0.1"] == buckets["60.0"] == 1.0
