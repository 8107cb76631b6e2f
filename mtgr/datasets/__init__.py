"""Event logs in files: wire JSONL, CSV with a column mapping and KuaiRand logs, all read as one kind of
event.
"""

from mtgr.datasets.columns import ColumnMapping, parse_mapping
from mtgr.datasets.log_files import OnInvalid, read_events, read_file
from mtgr.datasets.skipped import SkippedRecords
from mtgr.datasets.split import LogSplit, split_by_time

__all__ = [
    "ColumnMapping",
    "LogSplit",
    "OnInvalid",
    "SkippedRecords",
    "parse_mapping",
    "read_events",
    "read_file",
    "split_by_time",
]
