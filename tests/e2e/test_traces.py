"""Traces and logs of real processes: a control plane, an agent, a launcher and a command, with a receiver of OTLP in the test."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as otlp_grpc
from terminal import RANKS, SWITCHGEAR, Terminal, wait_for

from switchgear.cli.state import Running, read_running
from switchgear.launcher.state import is_held


@dataclass(frozen=True, slots=True)
class Span:
    """As it was received; ids in hexadecimal digits."""

    service: str
    name: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int


class Receiver(otlp_grpc.TraceServiceServicer):
    """What an OpenTelemetry backend would have."""

    def __init__(self) -> None:
        self.traces = defaultdict[str, list[Span]](list)
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        otlp_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def Export(  # noqa: N802
        self, request: otlp.ExportTraceServiceRequest, context: Any
    ) -> otlp.ExportTraceServiceResponse:
        for resource in request.resource_spans:
            service = next(a.value.string_value for a in resource.resource.attributes if a.key == "service.name")
            for scope in resource.scope_spans:
                for span in scope.spans:
                    received = Span(
                        service,
                        span.name,
                        span.span_id.hex(),
                        span.parent_span_id.hex(),
                        span.start_time_unix_nano,
                        span.end_time_unix_nano,
                    )
                    self.traces[span.trace_id.hex()].append(received)
        return otlp.ExportTraceServiceResponse()

    def names(self, trace_id: str) -> set[tuple[str, str]]:
        """Service and name of each span of the trace."""
        return {(span.service.removeprefix("switchgear-"), span.name) for span in self.traces[trace_id]}

    def close(self) -> None:
        self._server.stop(0).wait()


class World(Terminal):
    """A control plane and an agent as processes of their own, whose spans arrive in the receiver."""

    def __init__(self, folder: Path, receiver: Receiver) -> None:
        super().__init__(folder)
        self.environment |= {
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            # A proxy of the machine is none of loopback's business.
            "no_proxy": "127.0.0.1",
        }
        self._plane = self._spawn(
            "up", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--router", "127.0.0.1:0", "--no-agent", log="up"
        )
        self.running = self._up()
        place = ("--state-dir", str(folder / "agent"), "--sim-gpus", str(RANKS), "--node", "n1")
        self._agent = self._spawn("agent", "--server", self.running.grpc, *place, log="agent")
        wait_for(lambda: self.get("/v1/nodes").get("nodes"))

    def _up(self) -> Running:
        def running() -> Running | None:
            assert self._plane.poll() is None, (self.folder / "up.log").read_text()
            return read_running(self.folder / "state")

        wait_for(running)
        found = running()
        assert found is not None
        return found

    def _spawn(self, *arguments: str, log: str) -> subprocess.Popen[str]:
        with (self.folder / f"{log}.log").open("w") as output:
            command = [*SWITCHGEAR, *arguments, "--log-level", "info"]
            return subprocess.Popen(command, cwd=self.folder, env=self.environment, stderr=output, stdout=output)

    def get(self, path: str, **headers: str) -> Any:
        return httpx.get(f"http://{self.running.http}{path}", headers=headers, timeout=10, trust_env=False).json()

    def lines(self, log: str) -> list[dict[str, Any]]:
        """The log lines of a process."""
        text = (self.folder / f"{log}.log").read_text()
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]

    def launchers(self) -> list[Path]:
        return [path for path in (self.folder / "agent" / "launchers").glob("*") if path.is_dir()]

    def close(self) -> None:
        wait_for(lambda: not any(is_held(folder) for folder in self.launchers()), 30)
        for process in (self._agent, self._plane):
            process.terminate()
            process.wait(20)
        super().close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def world(tmp_path: Path, receiver: Receiver) -> Iterator[World]:
    world = World(tmp_path, receiver)
    yield world
    world.close()


def test_one_trace_follows_a_job_to_its_ranks_and_one_its_incident(world: World, receiver: Receiver) -> None:
    submitted = world.run("run", "--detach", *world.training("train"))
    assert submitted.returncode == 0, submitted.stderr
    wait_for(lambda: any(loss.step >= 15 for loss in world.losses("train")))
    (folder,) = world.launchers()
    os.kill(json.loads((folder / "generation.json").read_text())["processes"][0]["pid"], signal.SIGKILL)
    wait_for(lambda: world.get("/v1/jobs/train")["state"] == "SUCCEEDED")
    (incident,) = world.get("/v1/incidents")["incidents"]

    submission = world.get("/v1/jobs/train")["traceParent"].split("-")[1]
    wanted = {
        ("cli", "switchgear run"),
        ("up", "switchgear.v1.JobService/CreateJob"),
        ("up", "queue"),
        ("agent", "start launcher"),
        ("launcher", "start launcher process"),
        ("launcher", "start attempt"),
        ("up", "call scheduler: set_state"),
        ("up", "switchgear.v1alpha.PlacementService/UpdateJobState"),
    }
    wait_for(lambda: wanted <= receiver.names(submission), 15)
    assert incident["traceId"] != submission
    phases = {entry["phase"] for entry in incident["timeline"]} - {"fault"}
    assert {"detected", "stopped", "decided", "started", "first_step", "first_new_step"} <= phases
    wanted = {
        *(("up", name) for name in phases | {"incident"}),
        ("launcher", "stop attempt"),
        ("launcher", "start attempt"),
        ("launcher", "verify checkpoints"),
        ("up", "switchgear.v1alpha.PlacementService/UpdateJobState"),
    }
    wait_for(lambda: wanted <= receiver.names(incident["traceId"]), 15)

    for trace_id in (submission, incident["traceId"]):
        spans = receiver.traces[trace_id]
        known = {span.span_id for span in spans}
        assert len(known) == len(spans)
        assert [span.name for span in spans if not span.parent_id] == [
            "switchgear run" if trace_id == submission else "incident"
        ]
        assert [span for span in spans if span.parent_id and span.parent_id not in known] == []
        assert all(span.start_ns <= span.end_ns for span in spans)

    (created,) = [line for line in world.lines("up") if str(line.get("method")).endswith("JobService/CreateJob")]
    assert (created["trace_id"], created["component"], created["code"]) == (submission, "up", "OK")
    assert (created["actor"], created["duration_ms"] > 0) == ("local", True)


def test_a_client_of_rest_that_traces_finds_its_call_below_its_own_span(world: World, receiver: Receiver) -> None:
    trace_id, span_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    world.get("/v1/jobs", traceparent=f"00-{trace_id}-{span_id}-01")
    wanted = {("up", "GET /v1/jobs"), ("up", "switchgear.v1.JobService/ListJobs")}
    wait_for(lambda: wanted <= receiver.names(trace_id), 15)
    by_name = {span.name: span for span in receiver.traces[trace_id]}
    outer, inner = by_name["GET /v1/jobs"], by_name["switchgear.v1.JobService/ListJobs"]
    assert (outer.parent_id, inner.parent_id) == (span_id, outer.span_id)


def test_a_receiver_that_is_away_costs_a_command_two_seconds_at_most(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path)
    terminal.environment |= {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    ended = subprocess.run(
        [*SWITCHGEAR, "jobs", "--server", "127.0.0.1:9"],
        env=terminal.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=15,
    )
    assert (ended.returncode, "no control plane answers" in ended.stderr) == (14, True), ended.stderr
