"""Cases as they stand on a command line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtgr.bench.cases import Case, parse_case, parse_cases
from mtgr.errors import InputError


@given(st.builds(Case, st.integers(1, 5000), st.integers(1, 5000), st.booleans()))
def test_a_case_is_read_back_from_its_text(case: Case) -> None:
    """What a case is printed as asks for the same case."""
    assert parse_case(str(case)) == case


@given(st.builds(Case, st.integers(1, 5000), st.integers(1, 5000), st.booleans()))
def test_a_cached_case_computes_one_token_of_a_user_and_a_fresh_one_all(case: Case) -> None:
    """The profile is a token, each event is one, and of a cached history only the event after it is new."""
    assert case.length == case.events + (2 if case.cached else 1)
    assert case.new_tokens == (1 if case.cached else case.length)


@pytest.mark.parametrize("text", ["", "64", "64x", "0x100", "64x200+2", "64x200,", "ax100"])
def test_what_is_no_case_is_refused_with_what_is_wanted(text: str) -> None:
    """A typing error on the command line says how a case is written."""
    with pytest.raises(InputError, match="USERSxEVENTS"):
        parse_cases(text)
