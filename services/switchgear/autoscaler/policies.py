"""Policies by name, and the one that sizes services."""

from __future__ import annotations

import math
from collections.abc import Mapping

from switchgear.autoscaler.baselines import registry
from switchgear.autoscaler.observation import Scaler
from switchgear.autoscaler.sizing.policy import Policy
from switchgear.core.errors import Invalid, Reason


def live() -> Policy:
    """The policy that sizes services, without any memory."""
    return Policy()


def restored(memory: Mapping[str, object]) -> Policy:
    """The policy that sizes services, with what it had learned; anew when another version of it had. Raises Invalid for what none wrote."""
    try:
        fresh = Policy().memory()
        if memory.get("version") == fresh["version"]:
            _require_like(memory, fresh, "memory")
        return Policy.restored(memory)
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise Invalid(
            f"what the policy remembered means nothing to this version of it ({type(error).__name__} {error}); use the version that wrote it",
            Reason.BAD_FIELD,
            field="memory",
        ) from error


def _require_like(found: object, fresh: object, where: str) -> None:
    """Raises ValueError unless the shape is that of a policy that has seen nothing, of which lists that grow are empty and the unknown is None.

    A policy that finds out later could not decide then, and not after a restart either.
    """
    if isinstance(fresh, Mapping):
        if not isinstance(found, Mapping) or found.keys() != fresh.keys():
            raise ValueError(f"{where} is no object with {', '.join(fresh)}")
        for key, value in fresh.items():
            _require_like(found[key], value, f"{where}.{key}")
    elif isinstance(fresh, list | tuple):
        if not isinstance(found, list | tuple) or (fresh and len(found) != len(fresh)):
            raise ValueError(f"{where} is no list of {len(fresh) or 'numbers'}")
        for value, one in zip(found, fresh or [0.0] * len(found), strict=True):
            _require_like(value, one, where)
    elif not (found is None and fresh is None) and (
        isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found)
    ):
        raise ValueError(f"{where} has {found!r:.40}, which is no number")


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
