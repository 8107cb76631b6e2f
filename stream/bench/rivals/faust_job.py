"""`python -m stream.bench.rivals.faust_job`: the job in faust-streaming, until SIGTERM. Runs in `.rivals/faust`.

Batches (`take`) would write a user once and not once an event, but a table writes a whole batch into the partition of
its last event, and agents with a stream for each partition (`isolated_partitions`) end with an error.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import faust

from stream.bench.rivals.histories import append_packed, append_plain, decode


def _plainly(app: faust.App, topic: str, partitions: int) -> None:
    events = app.topic(topic, key_type=str, key_serializer="raw", value_serializer="json")
    histories = app.Table("histories", default=list, partitions=partitions)

    async def fold(stream: Any) -> None:
        async for event in stream:
            user_id = event["user_id"]
            history = histories[user_id]
            if append_plain(history, event):
                histories[user_id] = history

    app.agent(events)(fold)


def _packed(app: faust.App, topic: str, partitions: int) -> None:
    events = app.topic(topic, key_type=bytes, key_serializer="raw", value_type=bytes, value_serializer="raw")
    histories = app.Table("histories", partitions=partitions, key_type=bytes, value_type=bytes)

    async def fold(stream: Any) -> None:
        async for value in stream:
            event = decode(value)
            key = event.user_id.encode()
            history = append_packed(histories.get(key), event)
            if history is not None:
                histories[key] = history

    app.agent(events)(fold)


def main(options: dict[str, Any]) -> None:
    """Options: servers, group, topic, partitions, directory, tuned, and where it is tuned commit_seconds."""
    arguments: dict[str, Any] = {
        "broker": f"kafka://{options['servers']}",
        "store": "rocksdb://",
        "datadir": options["directory"],
        "web_enabled": False,
        "topic_disable_leader": True,
        "topic_partitions": options["partitions"],
        "consumer_auto_offset_reset": "earliest",
    }
    if options["tuned"]:
        arguments |= {
            "broker_commit_interval": options["commit_seconds"],
            "broker_max_poll_records": 4_000,
            "broker_check_crcs": False,
            "stream_buffer_maxsize": 16_384,
            "producer_linger": 0.02,
            "producer_max_batch_size": 512 * 1024,
        }
    app = faust.App(options["group"], **arguments)
    (_packed if options["tuned"] else _plainly)(app, options["topic"], options["partitions"])
    faust.Worker(app, loglevel="WARNING").execute_from_commandline()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
