"""Event logs in files, whatever their format, read as one kind of event; and attributes of videos and users."""

from mtgr.datasets.attributes import read_attributes
from mtgr.datasets.columns import ColumnMapping
from mtgr.datasets.log_files import OnInvalid, read_events, read_file
from mtgr.datasets.mapping_text import parse_mapping
from mtgr.datasets.skipped import SkippedRecords
from mtgr.datasets.split import LogSplit, split_by_time

__all__ = [
    "ColumnMapping",
    "LogSplit",
    "OnInvalid",
    "SkippedRecords",
    "parse_mapping",
    "read_attributes",
    "read_events",
    "read_file",
    "split_by_time",
]
