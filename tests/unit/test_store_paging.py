"""Page tokens go back to where they came from, and nothing else passes for one."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from switchgear.core.errors import Invalid, Reason
from switchgear.store import paging


@given(st.text(max_size=50), st.text(max_size=200))
def test_a_text_key_comes_back(collection: str, key: str) -> None:
    assert paging.after_text(collection, paging.page_token(collection, key)) == key


@given(st.integers(-(2**63), 2**63 - 1))
def test_a_number_comes_back(key: int) -> None:
    assert paging.after_number("jobs", paging.page_token("jobs", key)) == key


def test_no_token_is_the_first_page() -> None:
    assert paging.after_text("nodes", "") is None
    assert paging.after_number("jobs", "") is None


@pytest.mark.parametrize(
    "token",
    [
        "nonsense",
        "é",
        "=" * 3000,
        paging.page_token("jobs", "x"),
        paging.page_token("nodes", 7),
        base64.urlsafe_b64encode(b'["nodes"]').decode(),
        base64.urlsafe_b64encode(b'["nodes", null]').decode(),
        base64.urlsafe_b64encode(b"[" * 1400).decode(),
    ],
)
def test_what_the_list_did_not_give_is_refused(token: str) -> None:
    with pytest.raises(Invalid) as caught:
        paging.after_text("nodes", token)
    assert caught.value.reason is Reason.BAD_PAGE_TOKEN


def test_a_number_beyond_any_column_is_refused() -> None:
    with pytest.raises(Invalid):
        paging.after_number("jobs", paging.page_token("jobs", 2**63))


def test_page_sizes_have_a_default_and_a_bound() -> None:
    assert [paging.page_size(n) for n in (0, 1, 1000, 5000)] == [100, 1, 1000, 1000]
    with pytest.raises(Invalid):
        paging.page_size(-1)
