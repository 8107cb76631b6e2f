"""`python -m stream.bench.rivals.quix_job`: the job in Quix Streams, until SIGTERM. Runs in `.rivals/quix`.

What is tuned is what its documentation and a profile name: no JSON of its own, state as one packed value, bigger
batches of the client, no fsync of RocksDB (the changelog is the truth).
"""

from __future__ import annotations

import json
import sys
from typing import Any

from quixstreams import Application, State
from quixstreams.state.rocksdb import RocksDBOptions

from stream.bench.rivals.histories import append_packed, append_plain, decode


def _plainly(event: dict[str, Any], state: State) -> None:
    history = state.get("history", [])
    if append_plain(history, event):
        state.set("history", history)


def _packed(value: bytes, state: State) -> None:
    history = append_packed(state.get_bytes("history"), decode(value))
    if history is not None:
        state.set_bytes("history", history)


def main(options: dict[str, Any]) -> None:
    """Options: servers, group, topic, directory, tuned, and where it is tuned guarantee and commit_seconds."""
    arguments: dict[str, Any] = {
        "broker_address": options["servers"],
        "consumer_group": options["group"],
        "auto_offset_reset": "earliest",
        "state_dir": options["directory"],
        "loglevel": "WARNING",
    }
    tuned = options["tuned"]
    if tuned:
        arguments |= {
            "processing_guarantee": options["guarantee"],
            "commit_interval": options["commit_seconds"],
            "rocksdb_options": RocksDBOptions(use_fsync=False),
            "consumer_extra_config": {"check.crcs": False, "queued.min.messages": 100_000},
            "producer_extra_config": {"linger.ms": 20, "batch.size": 512 * 1024},
        }
    app = Application(**arguments)
    deserializer = "bytes" if tuned else "json"
    topic = app.topic(options["topic"], key_deserializer="bytes", value_deserializer=deserializer)
    app.dataframe(topic).update(_packed if tuned else _plainly, stateful=True)
    app.run()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
