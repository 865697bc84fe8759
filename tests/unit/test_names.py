"""Resource names are put together and taken apart in one place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from switchgear.core import names
from switchgear.core.errors import Invalid, Reason


def test_names_follow_the_resource_hierarchy() -> None:
    node, job = names.node_name("gpu-01"), names.job_name("llama")
    assert node == "nodes/gpu-01"
    assert names.gpu_name(node, 3) == "nodes/gpu-01/gpus/3"
    assert job == "jobs/llama"
    assert names.attempt_name(job, 2) == "jobs/llama/attempts/2"
    assert names.incident_name("i-1") == "incidents/i-1"
    assert names.signal_name("s.1") == "signals/s.1"


@pytest.mark.parametrize("bad", ["", "A", "-a", "a-", ".a", "a.", "a/b", "a_b", "a b", "ä", "a" * 64, "a\n", "a\0"])
def test_an_id_that_may_not_stand_in_a_name_is_refused(bad: str) -> None:
    with pytest.raises(Invalid, match="lower-case letters") as caught:
        names.check_id(bad, "node")
    assert caught.value.reason is Reason.BAD_NAME


def test_an_id_may_have_63_characters() -> None:
    assert names.check_id("a" * 63, "node") == "a" * 63


def test_parse_gives_the_ids_where_the_pattern_has_stars() -> None:
    assert names.parse("nodes/gpu-01/gpus/3", "nodes/*/gpus/*") == ("gpu-01", "3")
    assert names.parse("jobs/llama/progress", "jobs/*/progress") == ("llama",)


@pytest.mark.parametrize(
    "bad", ["", "nodes", "nodes/", "nodes/a/b", "jobs/a", "nodes/A", "/nodes/a", "nodes/a/", "nodes/*"]
)
def test_parse_refuses_a_name_of_another_form(bad: str) -> None:
    with pytest.raises(Invalid) as caught:
        names.parse(bad, "nodes/*")
    assert caught.value.reason is Reason.BAD_NAME


@given(st.text())
def test_any_text_has_a_nearest_id(text: str) -> None:
    made = names.to_id(text)
    assert names.check_id(made, "id") == made
    assert names.to_id(made) == made


def test_the_nearest_id_stays_readable() -> None:
    assert names.to_id("Train_GPT (v2).py") == "train-gpt-v2-.py"
    assert names.to_id("???", fallback="job") == "job"


@given(st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?", fullmatch=True), st.integers(0, 10**6))
def test_what_is_put_together_can_be_taken_apart(node: str, index: int) -> None:
    name = names.gpu_name(names.node_name(node), index)
    assert names.parse(name, "nodes/*/gpus/*") == (node, str(index))
