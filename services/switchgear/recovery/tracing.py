"""Recovery's traces: one for each incident, whose id follows from the incident itself.

A restart of recovery thus goes on with the same trace, and launchers can add to it before the incident is over.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from switchgear.core import trace
from switchgear.recovery import model as m

_CLOSED = (m.IncidentState.RESOLVED, m.IncidentState.ESCALATED)


def root(incident: m.Incident) -> str:
    """The root of the incident's trace. Jobs' names may be used again, so the time of detection is a part of it."""
    return trace.stable("incident", incident.incident_id, incident.timeline["detected"])


def parent(state: m.JobState) -> str:
    """What is done for a job now is done for this: its open incident, else its submission; empty when that was not traced."""
    return root(state.incident) if state.incident else state.trace_parent


def kept(records: Sequence[m.Effect]) -> None:
    """Records that have been stored: an incident that is over becomes spans, with the times that they truly had."""
    for entry in records:
        if isinstance(entry, m.SaveIncident) and entry.incident.state in _CLOSED:
            _record(entry.incident)


def _record(incident: m.Incident) -> None:
    phases = sorted(incident.timeline.items(), key=lambda phase: phase[1])
    start_ns, end_ns = phases[0][1], phases[-1][1]
    itself = root(incident)
    about = {
        "switchgear.incident": f"incidents/{incident.incident_id}",
        "switchgear.job": incident.job,
        "switchgear.node": incident.node,
        "switchgear.fault": incident.fault.value,
        "switchgear.decision": incident.decision.value if incident.decision else "",
        "switchgear.summary": incident.summary,
    }
    error = "" if incident.state is m.IncidentState.RESOLVED else incident.decision_reason or "escalated"
    trace.record("incident", start_ns, end_ns, itself=itself, attributes=about, error=error)
    for (_, before_ns), (phase, time_ns) in pairwise(phases):
        trace.record(phase, before_ns, time_ns, parent=itself)
