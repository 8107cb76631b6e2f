"""The whole way with vLLM: an engine of the daemon's own, and one that two daemons share."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from daemons import Deployment
from events import EventMaker, all_outgoing, names
from expectations import all_committed, all_served, changelog_states, stored_states
from records import eventually, produce, read_to_end
from traffic import traffic

from mtgr.reference import ReferenceRecommender
from stream.demo.broker import free_port
from stream.demo.processes import Child

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

_KV_CACHE_GIB = 0.1
_ENGINE_SECONDS = 300.0  # an engine starts in 15 s, on a busy machine in minutes


async def test_events_become_lists_on_vllm_and_an_engine_that_dies_is_replaced(
    deployment: Deployment, reference: ReferenceRecommender
) -> None:
    """vLLM's lists are the reference's, from the prefix cache too; when its engine process is killed under traffic the
    batch is made on a new one, nobody loses a list and no event dies; the engine ends with the daemon."""
    servers, topics = deployment.servers, deployment.names
    maker = EventMaker(seed=1, users=names("u", 12))
    running = deployment.start(changes={"generator.kind": "vllm", "generator.kv_cache_gib": _KV_CACHE_GIB})
    await produce(servers, topics.events, all_outgoing(maker.take(200)))
    await running.ready(_ENGINE_SECONDS)
    (started,) = running.logged("engine_process_started")
    await all_served(servers, topics)
    async with traffic(servers, topics.events, maker, at_once=5):
        await running.until_metric("mtgr_cached_tokens_total", lambda tokens: tokens > 0)
        os.kill(started["pids"][0], signal.SIGKILL)
        await running.until_readiness(lambda answer: not answer["ready"], "the engine restarts")
        await running.until_logged("engine_process_started", 2, within=_ENGINE_SECONDS)
        await running.ready()
    outcome = await all_served(servers, topics)
    await all_committed(servers, topics)
    metrics = running.metrics()
    assert 0 < metrics["mtgr_session_cache_sessions"] <= metrics["mtgr_session_cache_blocks_in_use"]
    assert metrics["mtgr_session_cache_blocks_in_use"] <= metrics["mtgr_session_cache_blocks"]
    await running.drain()
    outcome.check_order()
    outcome.check_lists(reference)
    outcome.check_state(stored_states(deployment.state_directory(), topics))
    assert await read_to_end(servers, topics.dead_letters) == []
    assert any(published.value.cached_tokens for published in outcome.lists)
    pids = {pid for start in running.logged("engine_process_started") for pid in start["pids"]}
    await eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "the engines' end")


async def test_two_daemons_share_an_engine_server(
    deployment: Deployment, checkpoint: Path, reference: ReferenceRecommender, tmp_path: Path
) -> None:
    """Two daemons without a model of their own make the reference's lists through one `mtgr-stream serve`."""
    servers, topics = deployment.servers, deployment.names
    port = free_port()
    serve = ["serve", "--checkpoint", str(checkpoint), "--port", str(port), "--log-format", "json"]
    command = [sys.executable, "-m", "stream", *serve, "--kv-cache-gib", str(_KV_CACHE_GIB)]
    deployment.use_server(f"http://127.0.0.1:{port}")
    maker = EventMaker(seed=2, users=names("u", 20))
    with Child(command, tmp_path / "serve.log", name="serve"):
        # they wait for the server, which takes longer to start than they do
        daemons = [deployment.start("one"), deployment.start("two")]
        for running in daemons:
            await running.ready(_ENGINE_SECONDS)
            await running.until_metric("mtgr_assigned_partitions", lambda partitions: partitions == 1)
        async with traffic(servers, topics.events, maker):
            for running in daemons:
                await running.until_metric("mtgr_lists_total", lambda lists: lists > 20)
        outcome = await all_served(servers, topics)
        await all_committed(servers, topics)
        for running in daemons:
            await running.drain()
    outcome.check_order()
    outcome.check_lists(reference)
    outcome.check_state(changelog_states(await read_to_end(servers, topics.changelog)))
