"""Traces without a receiver, and how log lines name them."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from importlib.metadata import version

from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, use_span

from switchgear.core import trace
from switchgear.core.log import JsonFormatter
from switchgear.core.version import VERSION
from switchgear.recovery import model as m
from switchgear.recovery import tracing

SPAN = NonRecordingSpan(SpanContext(0xA, 0xB, is_remote=False, trace_flags=TraceFlags(1)))


def incident(detected_ns: int) -> m.Incident:
    timeline = {"detected": detected_ns}
    return m.Incident("train-1", "jobs/train", m.IncidentState.OPEN, m.Fault.RANK_KILLED, timeline=timeline)


def test_without_a_receiver_nothing_is_traced_and_nothing_breaks() -> None:
    with trace.span("work", parent="") as span:
        assert not span.is_recording()
        assert trace.current() == ""
    trace.record("work", 1, 2)
    assert (trace.client_interceptors(), trace.is_on()) == ([], False)


def test_without_a_receiver_the_library_is_not_even_imported() -> None:
    code = "import sys; import switchgear.core.trace, switchgear.core.log; print('opentelemetry' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_the_version_is_that_of_the_package() -> None:
    assert version("switchgear") == VERSION


def test_an_incidents_trace_is_the_same_in_every_process_and_never_another_ones() -> None:
    first, later = tracing.root(incident(1_000)), tracing.root(incident(2_000))
    assert first == tracing.root(incident(1_000))
    assert first != later  # the same job name, used again
    version, trace_id, span_id, flags = first.split("-")
    assert (version, len(trace_id), len(span_id), flags) == ("00", 32, 16, "01")
    assert trace.trace_id(first) == trace_id


def test_what_is_done_for_a_job_belongs_to_its_incident_or_else_to_its_submission() -> None:
    state = m.JobState("jobs/train", m.Spec(1, 1, 0, ""), 0, trace_parent="of the submission")
    assert tracing.parent(state) == "of the submission"
    state.incident = incident(1_000)
    assert tracing.parent(state) == tracing.root(state.incident)


def test_a_line_of_the_log_names_its_component_and_its_span() -> None:
    record = logging.makeLogRecord({"msg": "rpc", "levelname": "INFO", "name": "x", "code": "OK"})
    with use_span(SPAN):
        line = json.loads(JsonFormatter("scheduler").format(record))
    assert (line["component"], line["code"]) == ("scheduler", "OK")
    assert (line["trace_id"], line["span_id"]) == (f"{0xA:032x}", f"{0xB:016x}")
    assert "trace_id" not in json.loads(JsonFormatter().format(record))
