"""What outlives a restart of the process: one file for each service."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import JsonValue, TypeAdapter, ValidationError

from switchgear.autoscaler.external.settings import REPLICAS_MAX
from switchgear.core.errors import FailedPrecondition, Reason
from switchgear.core.tls import write_private

log = logging.getLogger(__name__)

VERSION = 1
#: In the folder of a service.
FILE = "state.json"


@dataclass(frozen=True, slots=True)
class State:
    """After a decision.

    now_s: on the clock of the policy, which goes on over restarts. unix_s: the same moment as wall time. desired: what was decided.
    asked_s: see `Starts`. answered: see `Presence`. policy: whose `memory` it is; None: it has none.
    """

    now_s: float
    unix_s: float
    desired: int
    asked_s: tuple[float, ...]
    answered: tuple[str, ...]
    policy: str
    memory: dict[str, JsonValue] | None


_STATE = TypeAdapter(State)


def save(path: Path, state: State) -> None:
    """Whole or as it was before, also when the machine stops meanwhile."""
    write_private(path, json.dumps({"version": VERSION, **asdict(state)}))


def load(path: Path) -> State | None:
    """None when there is none, or it cannot be read, which the log says. Raises FailedPrecondition for one of a newer version."""
    try:
        read = json.loads(path.read_text())
        version = read.pop("version")
        if version > VERSION:
            raise FailedPrecondition(
                f"{path} is of a newer version; use that, or delete the file to begin anew",
                Reason.STATE_NEWER,
                path=str(path),
            )
        kept = _STATE.validate_python(read)
        if not all(map(math.isfinite, (kept.now_s, kept.unix_s, *kept.asked_s))):
            raise ValueError("a time in it is no number")
        if not 0 <= kept.desired <= REPLICAS_MAX:
            raise ValueError(f"desired is {kept.desired}, not 0 to {REPLICAS_MAX}")
        return kept
    except FileNotFoundError:
        return None
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        log.warning("%s cannot be used (%s: %s); its service is learned anew", path, where, first["msg"])
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        log.warning("%s cannot be used (%s); its service is learned anew", path, error)
        return None
