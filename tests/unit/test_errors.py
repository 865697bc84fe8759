"""One hierarchy of errors, each with a canonical code, a reason and what it speaks of."""

from __future__ import annotations

import grpc
import pytest

from switchgear.core import errors
from switchgear.core.errors import NotFound, Reason, SwitchgearError

CLASSES = [SwitchgearError, *SwitchgearError.__subclasses__()]


@pytest.mark.parametrize("cls", CLASSES)
def test_every_class_has_a_canonical_code(cls: type[SwitchgearError]) -> None:
    assert cls.code in grpc.StatusCode.__members__


def test_no_two_classes_share_a_code() -> None:
    assert len({cls.code for cls in CLASSES}) == len(CLASSES)


def test_an_error_reads_as_its_message_and_carries_its_metadata() -> None:
    error = errors.Invalid("page_size must be at most 1000", Reason.BAD_FIELD, field="page_size")
    assert str(error) == "page_size must be at most 1000"
    assert (error.reason, error.metadata) == (Reason.BAD_FIELD, {"field": "page_size"})


def test_not_found_names_the_resource_and_the_remedy() -> None:
    error = NotFound("nodes/gpu-07")
    assert error.message == "nodes/gpu-07 does not exist; list its collection to see what does"
    assert (error.reason, error.metadata) == (Reason.NOT_FOUND, {"name": "nodes/gpu-07"})


@pytest.mark.parametrize("reason", Reason)
def test_a_reason_is_spelled_as_its_name(reason: Reason) -> None:
    assert reason.value == reason.name == reason.name.upper()
