"""Records, how they are kept and which of them count."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtgr.bench.cases import parse_case
from mtgr.bench.plan import Plan, decode_plan, encode_plan
from mtgr.bench.probe import covered
from mtgr.bench.records import Finished, Missing, RecordFile, Row, Setting, read_records
from mtgr.bench.results import Results
from mtgr.bench.run import parts
from mtgr.bench.sections import run_section
from mtgr.errors import InputError

GPU = Setting("cuda", "seed-high", "bfloat16")
CASE = parse_case("64x200")


def row(*milliseconds: float, setting: Setting = GPU) -> Row:
    return Row(setting, "ours", CASE, list(milliseconds), 1, 1)


def plan_of(path: Path, preset: str = "tiny") -> Plan:
    return Plan(
        device="cpu", preset=preset, dtype="float32", cases=(CASE,), repeats=1, directory=path,
        out=path / "out.jsonl", command="test",
    )  # fmt: skip


def test_records_are_read_as_they_were_written_and_the_newest_counts(tmp_path: Path) -> None:
    """A row that is measured again takes the place of the older one; with other options it is another row."""
    path = tmp_path / "records.jsonl"
    file = RecordFile(path)
    other = Setting("cuda", "seed-high", "bfloat16", {"scheduling": "vllm"})
    written = [row(3.0, 1.0, 2.0), row(9.0, setting=other), row(5.0, 4.0, 6.0)]
    for record in written:
        file.add(record)
    read = list(read_records([path]))
    assert read == written
    results = Results(read)
    found, with_option = results.row(GPU, "ours", CASE), results.row(other, "ours", CASE)
    assert found is not None
    assert with_option is not None
    assert (found.median, with_option.median) == (5.0, 9.0)


def test_a_line_that_is_no_record_is_named(tmp_path: Path) -> None:
    """A damaged file says where."""
    path = tmp_path / "records.jsonl"
    RecordFile(path).add(row(1.0))
    with path.open("ab") as file:
        file.write(b'{"type": "row"\n')
    with pytest.raises(InputError, match=r"records\.jsonl:2: "):
        list(read_records([path]))


def test_a_part_that_fails_is_missing_with_its_own_words(tmp_path: Path) -> None:
    """It takes no other part with it, and the page can say what is not there."""
    plan = plan_of(tmp_path, preset="teeny")
    run_section("checkpoint", plan, 100)
    (missing,) = read_records([plan.out])
    assert isinstance(missing, Missing)
    assert missing.what == "checkpoint"
    assert "unknown preset 'teeny'" in missing.reason


def test_what_is_measured_later_is_no_longer_missing() -> None:
    """A run that is repeated where it failed leaves nothing behind of the failure."""
    missing = [Missing("cuda", "seed-high", what, "why") for what in ("layers", "ours 64x200", "llama")]
    results = Results([*missing, Finished("cuda", "seed-high", "layers", 9.0), row(1.0)])
    assert [one.what for one in results.missing("cuda")] == ["llama"]


def test_a_part_without_time_left_is_missing_and_not_begun(tmp_path: Path) -> None:
    """A short slot loses what is least important, and says so."""
    plan = plan_of(tmp_path)
    run_section("ours", plan, 5)
    (missing,) = read_records([plan.out])
    assert isinstance(missing, Missing)
    assert "time was up" in missing.reason
    assert not plan.out.with_suffix(".log").exists()


def test_parts_that_serve_a_checkpoint_get_one_before() -> None:
    """Whatever is asked for alone has what it needs, in order."""
    assert parts("cuda", ["ours"]) == ["checkpoint", "ours"]
    assert parts("cuda", ["llama"]) == ["llama"]
    assert parts("cpu")[0] == "ceilings"


def test_a_plan_reaches_its_parts_as_it_is(tmp_path: Path) -> None:
    """A part is another process."""
    plan = plan_of(tmp_path)
    assert decode_plan(encode_plan(plan)) == plan


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 10))))
def test_time_in_which_two_kernels_run_is_counted_once(spans: list[tuple[int, int]]) -> None:
    """The busy time of a device is the union of its kernels' times."""
    moments = {moment for begin, length in spans for moment in range(begin, begin + length)}
    assert covered((begin, begin + length) for begin, length in spans) == len(moments)
