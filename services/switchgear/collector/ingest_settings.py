"""The section `[ingest]` of the collector's configuration."""

from __future__ import annotations

from pydantic import Field

from switchgear.collector import clock_offset, outgoing, pressure
from switchgear.collector.settings import Section


class IngestSettings(Section):
    """What each agent may do, and when all of them are asked for less.

    blocks_per_second_max: sustained, of one agent; 20 are five times what a driver answers in time. events_per_second_max: what an agent has
    beyond it waits in its spool. clock_offset_seconds_max: a clock that is further off is a signal, and its times are corrected.
    delay_seconds_max: when half of all blocks come later than this after their tick, agents are asked for longer intervals.
    ack_seconds_max: blocks of so long are acked together; 0: each by itself.
    """

    blocks_per_second_max: float = Field(default=20.0, gt=0)
    events_per_second_max: float = Field(default=100.0, gt=0)
    clock_offset_seconds_max: float = Field(default=clock_offset.BOUND_S, gt=0)
    delay_seconds_max: float = Field(default=pressure.DELAY_S_MAX, gt=0)
    ack_seconds_max: float = Field(default=outgoing.ACK_S_MAX, ge=0)
