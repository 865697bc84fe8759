"""`switchgear inference scale` as a process: it is killed, starts again, and goes on."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from engine_pages import Engines
from terminal import wait_for

from switchgear.autoscaler.baselines.registry import scaler
from switchgear.autoscaler.decision_file import Tail
from switchgear.autoscaler.decision_log import Head, read
from switchgear.autoscaler.external.deciding import Remembering
from switchgear.core import rpc
from switchgear.keda import external_scaler_pb2 as pb
from switchgear.keda import external_scaler_pb2_grpc

CHAT = pb.ScaledObjectRef(name="chat", namespace="ml", scaler_metadata={"service": "chat"})


@pytest.fixture
def busy_engines() -> Iterator[Engines]:
    """Three engines, each of which answers twenty requests a second."""
    engines, ended = Engines(3), threading.Event()

    def work() -> None:
        while not ended.wait(0.05):
            for page in engines.pages:
                page.serve(1)
                page.running = 2

    worker = threading.Thread(target=work)
    worker.start()
    yield engines
    ended.set()
    worker.join()
    engines.close()


@contextmanager
def scaling(folder: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], str, str]]:
    """The process, and where its external scaler and its metrics are."""
    command = [
        sys.executable,
        "-m",
        "switchgear.cli.main",
        "inference",
        "scale",
        "--listen=127.0.0.1:0",
        "--metrics=127.0.0.1:0",
    ]
    command += [f"--state-dir={folder}", *arguments]
    with tempfile.TemporaryFile("w+") as told:
        process = subprocess.Popen(command, stderr=told)

        def address() -> re.Match[str] | None:
            told.seek(0)
            said = told.read()
            assert process.poll() is None, said
            return re.search(r"external scaler at (\S+), metrics at (\S+)", said)

        try:
            wait_for(address, 20)
            found = address()
            assert found
            yield process, found[1], found[2]
        finally:
            process.kill()
            process.wait(10)


def desired(metrics: str) -> int | None:
    page = httpx.get(f"http://{metrics}/metrics", trust_env=False).text
    found = re.search(r'^switchgear_desired_replicas\{service="chat"\} (\d+)', page, re.MULTILINE)
    return int(found[1]) if found else None


def test_killed_and_started_again_it_goes_on_from_the_same_decision(tmp_path: Path, busy_engines: Engines) -> None:
    flags = ["--name=chat", f"--endpoints={','.join(busy_engines.urls)}", "--max=9", "--interval=0.3"]
    with scaling(tmp_path, *flags) as (_, _, metrics):  # ends with SIGKILL
        wait_for(lambda: desired(metrics) is not None, 20)
        time.sleep(1)
    with scaling(tmp_path, *flags) as (process, grpc, metrics):
        wait_for(lambda: desired(metrics) is not None, 20)
        with rpc.sync_channel(grpc) as channel:
            stub = external_scaler_pb2_grpc.ExternalScalerStub(channel)
            assert stub.IsActive(CHAT).result is True
            assert stub.GetMetrics(pb.GetMetricsRequest(scaled_object_ref=CHAT)).metric_values[0].metric_value >= 1
        process.terminate()
        assert process.wait(10) == 0
    policy, desired_then, now_s, heads = scaler("switchgear"), 0, 0.0, 0
    for line in read(Tail(tmp_path / "chat" / "decisions").lines(), "log"):
        assert isinstance(policy, Remembering)
        if isinstance(line, Head):
            policy, heads = type(policy).restored(line.memory or {}), heads + 1
            continue
        assert policy.decide(line.now_s, line.seen) == line.decision  # what was seen decides the same again
        assert line.now_s > now_s
        assert not desired_then or line.seen.desired == desired_then
        now_s, desired_then = line.now_s, line.seen.bounded(line.decision.replicas)
    assert heads == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "say which services: --config FILE, or --name, --endpoints and --max of one"),
        (["--name=chat", "--max=2"], "nothing says where the replicas are; give one of endpoints,"),
        (["--config=absent.toml"], "the configuration absent.toml cannot be read: No such file or directory"),
        (["--config=absent.toml", "--max=2"], "a --config has everything about its services"),
        (["--name=chat", "--endpoints=http://a:1/", "--max=2", "--listen=0.0.0.0:0"], "without TLS only loopback"),
        (["--name=chat", "--endpoints=http://a:1/", "--max=2", "--policy=best"], "there is no policy 'best'"),
    ],
)
def test_what_is_wrong_with_the_command_line_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    from switchgear.cli.main import main

    assert main(["inference", "scale", f"--state-dir={tmp_path}", "--metrics=127.0.0.1:0", *arguments]) != 0
    assert told in capsys.readouterr().err
