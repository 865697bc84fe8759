"""Policies by name, and the one that sizes services."""

from __future__ import annotations

from collections.abc import Mapping

from switchgear.autoscaler.baselines import registry
from switchgear.autoscaler.observation import Scaler
from switchgear.autoscaler.sizing.policy import Policy
from switchgear.core.errors import Invalid, Reason


def live() -> Policy:
    """The policy that sizes services, without any memory."""
    return Policy()


def restored(memory: Mapping[str, object]) -> Policy:
    """The policy that sizes services, with what it had learned. Raises Invalid when another version of it had."""
    try:
        return Policy.restored(memory)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise Invalid(
            f"what the policy remembered means nothing to this version of it ({type(error).__name__} {error}); use the version that wrote it",
            Reason.BAD_FIELD,
            field="memory",
        ) from error


def scaler(name: str) -> Scaler:
    """A policy by NAME or NAME:TARGET. Raises Invalid that names those that there are."""
    return registry.scaler(name)


def exists(name: str) -> bool:
    """Whether `scaler` has it."""
    try:
        scaler(name)
    except Invalid:
        return False
    return True
