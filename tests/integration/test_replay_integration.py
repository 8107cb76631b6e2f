"""`mtgr-stream replay` brings dead letters back, each once, and leaves what is not valid."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from events import outgoing, watch
from records import Outgoing, TopicNames, produce, read_to_end
from tools import Tool, settings_for

from mtgr.errors import InputError
from schemas.codecs import JSON, MESSAGEPACK, encode_event
from schemas.dead_letters import PREFIX, REPLAYED_HEADER, DeadLetter
from schemas.errors import Stage
from stream.tools.repairs import Repair, RepairCommand, no_repair
from stream.tools.replay import Replayer, Verdict

pytestmark = pytest.mark.broker


@pytest.fixture
def tool(kafka: str, topics: TopicNames) -> Tool:
    return Tool(kafka, topics)


def bury(
    topics: TopicNames, record: Outgoing, offset: int, stage: Stage = "validate", error: str = "InvalidEvent"
) -> Outgoing:
    """The dead letter of a record, as the daemon makes it."""
    letter = DeadLetter.make(
        topic=topics.events, partition=1, offset=offset, stage=stage, exception_class=error, message="no"
    )
    return record._replace(headers=[*record.headers, *letter.to_headers()], partition=offset % 2)  # type: ignore[list-item]


def broken(number: int) -> Outgoing:
    """A watch that lasted less than nothing."""
    good = outgoing(watch(f"u{number}", f"e{number}"), JSON)
    assert good.value is not None
    return good._replace(value=good.value.replace(b"7.5", b"-7.5"))


def replayer(kafka: str, topics: TopicNames, repair: Repair = no_repair, **options: Any) -> Replayer:
    return Replayer(settings_for(kafka, topics), repair, **options)


async def events_back(kafka: str, topics: TopicNames) -> list[str]:
    return sorted(json.loads(record.value)["event_id"] for record in await read_to_end(kafka, topics.events))


async def test_valid_letters_go_back_as_they_were(tool: Tool, kafka: str, topics: TopicNames) -> None:
    """Key, value and headers are those of the record that died, marked as sent back and without the reason."""
    event = watch("u1", "e1")
    record = outgoing(event, MESSAGEPACK, ("traceparent", b"00-ab-cd-01"))
    await produce(kafka, topics.dead_letters, [bury(topics, record, 4, "generate", "RequestRefused")])
    done = await tool.run("replay")
    assert done.code == 0, done.err
    assert f"1 went back to {topics.events}" in done.out
    (back,) = await read_to_end(kafka, topics.events)
    assert (back.key, back.value) == (b"u1", encode_event(event, MESSAGEPACK))
    assert dict(back.headers) == {
        "content-type": MESSAGEPACK.encode(),
        "traceparent": b"00-ab-cd-01",
        REPLAYED_HEADER: b"true",
    }
    assert not any(name.startswith(PREFIX) for name, _ in back.headers)


async def test_no_letter_goes_back_twice_and_none_that_was_left_is_lost(
    kafka: str, topics: TopicNames
) -> None:
    """Stage by stage, with limits, and as new letters come: after all runs each valid letter has gone back
    once.
    """
    first = [
        bury(topics, outgoing(watch(f"u{n}", f"e{n}")), n, "generate" if n % 3 else "decode")
        for n in range(60)
    ]
    later = [bury(topics, outgoing(watch(f"u{n}", f"e{n}")), n) for n in range(60, 70)]
    await produce(kafka, topics.dead_letters, first)
    assert (await replayer(kafka, topics, stage="generate").run()).replayed == 40
    assert (await replayer(kafka, topics, stage="generate").run()).replayed == 0
    assert (await replayer(kafka, topics, limit=7).run()).replayed == 7
    await produce(kafka, topics.dead_letters, later)
    assert (await replayer(kafka, topics).run()).replayed == 23
    assert (await replayer(kafka, topics).run()).replayed == 0
    assert await events_back(kafka, topics) == sorted(f"e{n}" for n in range(70))


async def test_letters_are_repaired_by_hand(
    tool: Tool, kafka: str, topics: TopicNames, tmp_path: Path
) -> None:
    """A dry run writes the letters and changes nothing; edited, they go back, and the others are left and
    listed.
    """
    await produce(kafka, topics.dead_letters, [bury(topics, broken(n), n) for n in range(4)])
    dry = await tool.run("replay", "--dry-run")
    assert "0 would go back" in dry.err
    assert "4 left: InvalidEvent at stage validate" in dry.err
    lines = dry.out.splitlines()
    assert len(lines) == 4
    repairs = tmp_path / "letters.jsonl"
    edited = [line.replace("-7.5", "7.5") if '"e2"' in line or '"e3"' in line else line for line in lines]
    repairs.write_text("\n".join([*edited, edited[0].replace('"offset":', '"offset":9')]))
    done = await tool.run("replay", "--repair", repairs)
    assert "2 went back" in done.out
    assert "2 left: InvalidEvent at stage validate" in done.out
    assert f"left: {topics.events} 1 0: watch_seconds = -7.5: expected a number, at least 0" in done.out
    assert "1 repairs of letters that are not there" in done.out
    assert await events_back(kafka, topics) == ["e2", "e3"]


async def test_letters_are_repaired_by_a_command_in_batches(kafka: str, topics: TopicNames) -> None:
    """A command gets each letter as a line of JSON and gives the repaired value; one that fails sends
    nothing.
    """
    await produce(kafka, topics.dead_letters, [bury(topics, broken(n), n) for n in range(1_200)])
    with pytest.raises(InputError, match="ended with exit code 7"):
        await replayer(kafka, topics, RepairCommand("exit 7")).run()
    code = (
        "import json,sys\n"
        "for line in sys.stdin:\n"
        "    value = json.loads(line)['value']\n"
        "    print(json.dumps(value | {'watch_seconds': abs(value['watch_seconds'])}))\n"
    )
    repair = RepairCommand(f'{sys.executable} -c "{code}"')
    assert (await replayer(kafka, topics, repair).run()).replayed == 1_200
    assert await events_back(kafka, topics) == sorted(f"e{n}" for n in range(1_200))


async def test_letters_that_would_die_again_are_left_with_the_reason(kafka: str, topics: TopicNames) -> None:
    """Of another topic, too long, under another's key, without a value, or no letter at all: nothing of it is
    sent.
    """

    def other_topic(record: Outgoing) -> Outgoing:
        headers: Sequence[tuple[str, bytes]] = [
            (name, b"elsewhere" if name == PREFIX + "topic" else value) for name, value in record.headers
        ]
        return record._replace(headers=headers)

    good = outgoing(watch("u1", "e1"))
    assert good.value is not None
    await produce(
        kafka,
        topics.dead_letters,
        [
            other_topic(bury(topics, good, 0)),
            bury(topics, good._replace(value=good.value[:-1] + b" " * 70_000 + b"}"), 2),
            bury(topics, good._replace(key=b"u2"), 4),
            bury(topics, good._replace(value=None), 6),
            good._replace(partition=0),
        ],
    )
    verdicts: list[Verdict] = []
    summary = await replayer(kafka, topics, on_verdict=verdicts.append).run()
    assert summary.replayed == 0
    assert summary.left["none", "not a dead letter"] == 1
    reasons = "\n".join(str(verdict.reason) for verdict in verdicts)
    for reason in (
        f"it came from topic elsewhere, not from topics.events = {topics.events}",
        "more than stream.max_event_bytes = 65536",
        "key 'u2' is not user_id 'u1'",
        "the value is null",
    ):
        assert reason in reasons
    assert await events_back(kafka, topics) == []


async def test_a_record_without_a_key_goes_back_under_its_users(kafka: str, topics: TopicNames) -> None:
    """A producer that forgot the key is mended by the replay."""
    record = outgoing(watch("u1", "e1"))._replace(key=None)
    await produce(kafka, topics.dead_letters, [bury(topics, record, 0, "validate", "KeyMismatch")])
    assert (await replayer(kafka, topics).run()).replayed == 1
    (back,) = await read_to_end(kafka, topics.events)
    assert back.key == b"u1"
