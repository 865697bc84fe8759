"""Slurm's short form of many names, both ways."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from switchgear.core.errors import Invalid
from switchgear.slurm.hostlist import NAMES_MAX, compress, expand

names = st.from_regex(r"[a-z][a-z0-9-]{0,6}[0-9]{0,5}(-ib)?", fullmatch=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gpu[01-03,7]", ("gpu01", "gpu02", "gpu03", "gpu7")),
        ("r[1-2]n[09-10]", ("r1n09", "r1n10", "r2n09", "r2n10")),
        ("login,n[8-10]-ib", ("login", "n8-ib", "n9-ib", "n10-ib")),
        ("n4", ("n4",)),
        ("", ()),
        ("(null)", ()),
        ("None", ()),
    ],
)
def test_the_short_form_stands_for_names(text: str, expected: tuple[str, ...]) -> None:
    assert expand(text) == expected


@pytest.mark.parametrize(
    ("given_names", "expected"),
    [
        (["n1", "n2", "n3"], "n[1-3]"),
        (["gpu03", "gpu01", "gpu7", "gpu02"], "gpu[01-03,7]"),
        (["n9", "n10", "n099", "n100"], "n[9-10,099-100]"),
        (["n8-ib", "n9-ib"], "n[8-9]-ib"),
        (["login", "n4", "n4"], "login,n4"),
        ([], ""),
    ],
)
def test_names_have_a_short_form(given_names: list[str], expected: str) -> None:
    assert compress(given_names) == expected


@given(st.lists(names, unique=True, max_size=30))
def test_the_short_form_keeps_every_name(given_names: list[str]) -> None:
    assert sorted(expand(compress(given_names))) == sorted(given_names)


@pytest.mark.parametrize("text", ["n[", "n]", "n[]", "n[1,]", "n[2-1]", "n[a]", ",n", "n,", "n[[1]]", "n[\u0661]"])
def test_what_is_no_list_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="not a list of nodes"):
        expand(text)


@pytest.mark.parametrize(
    "text",
    [
        f"n[1-{NAMES_MAX + 1}]",
        "n[" + ",".join(["1-65536"] * 1000) + "]",
        "[1-1000]" * 1000,
        "[1-2]" * 1000,
        "n[1-65536]," * 1000 + "n",
        "a" * 60_000 + "[1-65536]",
        "n[" + "9" * 5000 + "]",
    ],
    ids=["range", "ranges", "brackets", "small brackets", "names", "long names", "digits"],
)
def test_few_characters_never_stand_for_more_than_the_memory_holds(text: str) -> None:
    with pytest.raises(Invalid):
        expand(text)
