"""Events become lists: the right ones, in order, once."""

from __future__ import annotations

from daemons import Deployment, inside
from events import EventMaker, all_outgoing, names, outgoing, watch
from expectations import all_committed, all_served, changelog_states, stored_states
from records import produce, read_to_end

from mtgr.reference import ReferenceRecommender
from schemas.codecs import MESSAGEPACK


async def test_lists_follow_events_in_order_and_state_is_a_pure_fold(
    deployment: Deployment, reference: ReferenceRecommender
) -> None:
    """Every list is the model's own for the sequence at its trigger; a user's lists come in the order of events; the
    last reflects the last event; what is stored in the end is the sequence and nothing owed."""
    servers, topics = deployment.servers, deployment.names
    maker = EventMaker(seed=1, users=names("u", 12))
    async with inside(deployment):
        for _ in range(6):
            await produce(servers, topics.events, all_outgoing(maker.take(120)))
            await all_served(servers, topics)
        outcome = await all_served(servers, topics)
        await all_committed(servers, topics)
    outcome.check_order()
    outcome.check_lists(reference)
    assert max(len(lists) for lists in outcome.by_user().values()) >= 6
    assert {published.value.sequence_length for published in outcome.lists} & set(range(33, 49)), (
        "no sequence was cut"
    )
    outcome.check_state(changelog_states(await read_to_end(servers, topics.changelog)))
    outcome.check_state(stored_states(deployment.state_directory(), topics))


async def test_duplicate_events_change_nothing(
    deployment: Deployment, reference: ReferenceRecommender
) -> None:
    """An event that comes again, at once, later or after a restart, makes no list and leaves the state as it was."""
    servers, topics = deployment.servers, deployment.names
    events = EventMaker(seed=2, users=names("u", 5)).take(60)
    again = all_outgoing(events[20:])  # of the first, the sequences may have been cut by then
    async with inside(deployment) as running:
        await produce(servers, topics.events, [twice for one in all_outgoing(events) for twice in (one, one)])
        first = await all_served(servers, topics)
        await all_committed(servers, topics)
        await produce(servers, topics.events, again)
        await all_committed(servers, topics)
        assert running.metric("duplicates_total") == len(events) + len(again)
        assert running.metric("owed_users") == 0
    states = await read_to_end(servers, topics.changelog)
    async with inside(deployment) as running:
        await produce(servers, topics.events, again)
        await all_committed(servers, topics)
        assert running.metric("duplicates_total") == len(again)
        assert running.metric("owed_users") == 0
        assert running.metric("lists_total") == 0
    outcome = await all_served(servers, topics)
    assert len(outcome.lists) == len(first.lists)
    outcome.check_order()
    outcome.check_lists(reference)
    changelog = await read_to_end(servers, topics.changelog)
    assert [(record.key, record.value) for record in changelog] == [(one.key, one.value) for one in states]
    outcome.check_state(changelog_states(changelog))


async def test_window_of_events_costs_one_list(deployment: Deployment) -> None:
    """Events of a user within the quiet period are served by one list, after the last of them."""
    servers, topics = deployment.servers, deployment.names
    events = EventMaker(seed=3, users=["patient"]).take(20)
    changes = {"trigger.quiet_period_ms": 1_000, "trigger.max_wait_ms": 20_000}
    async with inside(deployment, changes=changes) as running:
        await produce(servers, topics.events, all_outgoing(events))
        outcome = await all_served(servers, topics)
        assert running.metric("list_batch_users_count") == 1
    assert [published.value.sequence_length for published in outcome.lists] == [20]


async def test_trace_and_session_travel_from_event_to_list(deployment: Deployment) -> None:
    """A list carries the trace context of the event it was made after, and the last session it heard of."""
    servers, topics = deployment.servers, deployment.names
    trace = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with inside(deployment):
        await produce(
            servers,
            topics.events,
            [
                outgoing(watch("u", "e1", session_id="s1")),
                outgoing(watch("u", "e2"), MESSAGEPACK, ("traceparent", trace)),
            ],
        )
        outcome = await all_served(servers, topics)
    last = outcome.lists[-1]
    assert dict(last.record.headers)["traceparent"] == trace
    assert last.value.session_id == "s1"
