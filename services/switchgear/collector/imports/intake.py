"""What every import needs: where series go, who judges them, what time it is, what is counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from switchgear.collector.imports.feeds import Feeds
from switchgear.collector.imports.judging import Judging
from switchgear.collector.imports.metrics import ImportMetrics
from switchgear.core.clock import Clock


@dataclass(frozen=True, slots=True)
class Intake:
    """Shared by all imports of a collector. elsewhere: address of the collector of `nodes/{node}`, or "" when it is this one."""

    feeds: Feeds
    judging: Judging
    clock: Clock
    metrics: ImportMetrics
    elsewhere: Callable[[str], str]
