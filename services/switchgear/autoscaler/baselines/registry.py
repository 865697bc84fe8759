"""Every policy by its name: ours, the baselines with the knob of each, and fixed fleets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from switchgear.autoscaler.baselines.apa import Apa
from switchgear.autoscaler.baselines.hpa import Hpa
from switchgear.autoscaler.baselines.keda import Keda
from switchgear.autoscaler.baselines.kpa import Kpa
from switchgear.autoscaler.baselines.ray_serve import RayServe
from switchgear.autoscaler.baselines.static import Static
from switchgear.autoscaler.baselines.wva import Wva
from switchgear.autoscaler.observation import Scaler
from switchgear.core.errors import Invalid, Reason

OURS = "switchgear"


@dataclass(frozen=True)
class Baseline:
    """A reactive autoscaler. target: its default, in the unit of `knob`; more means fewer replicas."""

    make: Callable[[float], Scaler]
    target: float
    knob: str


REACTIVE: Mapping[str, Baseline] = {
    "hpa": Baseline(Hpa, 10.0, "requests for each replica; it has no default"),
    "kpa": Baseline(Kpa, 70.0, "requests for each replica; default 70 % of 100"),
    "keda": Baseline(Keda, 10.0, "requests for each replica; it has no default"),
    "ray-serve": Baseline(RayServe, 2.0, "ongoing requests for each replica; default 2"),
    "apa": Baseline(Apa, 10.0, "requests for each READY replica; it has no default"),
    "wva": Baseline(Wva, 5.0, "waiting requests at which a replica is saturated; default 5"),
}


def scaler(text: str) -> Scaler:
    """A new one: NAME, or NAME:TARGET for another target than its default; `static:N` is a fixed fleet, `switchgear` our policy.

    Raises Invalid when there is none.
    """
    name, _, given = text.partition(":")
    if name == OURS and not given:
        from switchgear.autoscaler.sizing.policy import Policy

        return Policy()
    if name not in REACTIVE and name != "static":
        known = ", ".join((OURS, *REACTIVE, "static:N"))
        raise Invalid(f"there is no policy {text!r}; there are {known}", Reason.BAD_FIELD, policy=text)
    if name == "static":
        if not given.isascii() or not given.isdecimal():
            raise Invalid(f"policy {text!r} needs a number of replicas, as static:4", Reason.BAD_FIELD, policy=text)
        return Static(int(given))
    return REACTIVE[name].make(_target(given, text) if given else REACTIVE[name].target)


def _target(given: str, text: str) -> float:
    try:
        target = float(given)
    except ValueError:
        target = math.nan
    if not 0 < target < math.inf:
        raise Invalid(f"policy {text!r}: the target is a number above 0, as hpa:8", Reason.BAD_FIELD, policy=text)
    return target
