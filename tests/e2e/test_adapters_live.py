"""The table of metrics against inference servers of others, as they are installed. `make probe-live` installs them all and runs this.

They are too heavy for everybody's environment: the interpreter that has them is named by SWITCHGEAR_PROBE_PYTHON.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from terminal import wait_for

from switchgear.cli.main import main

PYTHON = os.environ.get("SWITCHGEAR_PROBE_PYTHON", sys.executable)
BIN = Path(PYTHON).parent
#: A server of these comes up in 10 to 20 s on a quiet machine.
START_S = 90.0
REQUESTS = 5

RAY = """
import asyncio, signal, sys, ray
from ray import serve
ray.init(num_cpus=2, include_dashboard=False, _metrics_export_port=int(sys.argv[2]), log_to_driver=False)
@serve.deployment(num_replicas=1, max_ongoing_requests=4)
class Echo:
    async def __call__(self, request):
        await asyncio.sleep(0.05)
        return "ok"
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
serve.run(Echo.bind())
signal.signal(signal.SIGTERM, signal.SIG_DFL)  # its daemons get the signal too, and to wait for them would take for ever
signal.pause()
"""
BENTO = """
import time, bentoml
@bentoml.service(workers=1)
class Echo:
    @bentoml.api
    def say(self, text: str) -> str:
        time.sleep(0.05)
        return text
"""
LIT = """
import sys, litserve
class Echo(litserve.LitAPI):
    def setup(self, device): pass
    def decode_request(self, request): return request["text"]
    def predict(self, text): return text
    def encode_response(self, text): return {"text": text}
if __name__ == "__main__":
    litserve.LitServer(Echo(), accelerator="cpu").run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False)
"""
TORCH = """
import time
def handle(data, context):
    if data is not None:
        time.sleep(0.05)
        return ["ok"] * len(data)
"""
KSERVE = """
import sys, time
from kserve import Model, ModelServer
class Echo(Model):
    def load(self):
        self.ready = True
        return True
    async def predict(self, payload, headers=None, response_headers=None):
        time.sleep(0.05)
        return {"predictions": payload["instances"]}
if __name__ == "__main__":
    port = int(sys.argv.pop(1))
    model = Echo("echo")
    model.load()
    ModelServer(http_port=port, enable_grpc=False).start([model])
"""
TRITON = """
import time
import triton_python_backend_utils as triton
class TritonPythonModel:
    def execute(self, requests):
        time.sleep(0.05)
        return [triton.InferenceResponse([triton.Tensor("y", triton.get_input_tensor_by_name(one, "x").as_numpy())]) for one in requests]
"""
TRITON_CONFIG = """
backend: "python"
max_batch_size: 4
input [ { name: "x" data_type: TYPE_FP32 dims: [ 1 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 1 ] } ]
instance_group [ { kind: KIND_CPU count: 1 } ]
"""
WHERE = """
import json, pytriton, sys, sysconfig
version = f"{sys.version_info.major}.{sys.version_info.minor}"
print(json.dumps([pytriton.__path__[0], version, sysconfig.get_config_var("LIBDIR"), sysconfig.get_path("purelib")]))
"""
Start = Callable[..., None]


def installed(module: str) -> bool:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    return subprocess.run([PYTHON, "-c", code], check=False).returncode == 0


def free_ports(count: int) -> list[int]:
    taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in taken]
    for one in taken:
        one.close()
    return ports


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    running: list[subprocess.Popen[bytes]] = []

    def run(*command: str | Path, environment: Mapping[str, str] | None = None) -> None:
        path = f"{BIN}:{os.environ['PATH']}"
        running.append(
            subprocess.Popen(
                command,
                cwd=tmp_path,
                env={**os.environ, "PATH": path, "RAY_USAGE_STATS_ENABLED": "0", **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=(tmp_path / "out").open("wb"),
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        )

    yield run
    for process in running:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def ask(url: str, body: object = None) -> None:
    """Sends one request until it is answered, then the others."""

    def answered() -> bool:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310 -- loopback
        try:
            with urllib.request.urlopen(request, timeout=5) as response:  # noqa: S310 -- the same
                return bool(response.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    for _ in range(REQUESTS):
        wait_for(answered, START_S)


def probed(capsys: pytest.CaptureFixture[str], url: str) -> dict[str, object]:
    """What the probe says once the server has told of its requests: Ray tells each 10 s."""
    shown: dict[str, object] = {}

    def told() -> bool:
        capsys.readouterr()
        code = main(["inference", "probe", url, "--watch", "0.2", "--json"])
        shown.clear()
        shown.update(json.loads(capsys.readouterr().out), code=code)
        return code == 0

    wait_for(told, START_S)
    return shown


def quantities(shown: dict[str, object]) -> set[str]:
    told = shown["told"]
    assert isinstance(told, list)
    assert [one["mismatch"] for one in told] == [""] * len(told)
    return {one["quantity"] for one in told}


@pytest.mark.skipif(not installed("ray"), reason="ray[serve] is not installed; make probe-live has it")
def test_ray_serve_is_as_the_table_says(start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "serve_ray.py").write_text(RAY)  # ray.py would hide Ray itself
    http, metrics = free_ports(2)
    start(PYTHON, "serve_ray.py", str(http), str(metrics))
    ask(f"http://127.0.0.1:{http}/")
    shown = probed(capsys, f"http://127.0.0.1:{metrics}")
    assert shown["engine"] == "ray-serve"
    assert str(shown["version"])[0].isdigit()
    assert quantities(shown) >= {"waiting", "running", "e2e", "queue_time", "completed"}


@pytest.mark.skipif(not installed("bentoml"), reason="bentoml is not installed; make probe-live has it")
def test_bentoml_is_as_the_table_says(start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "echo_service.py").write_text(BENTO)
    (port,) = free_ports(1)
    start(BIN / "bentoml", "serve", "echo_service:Echo", "--host", "127.0.0.1", "--port", str(port))
    ask(f"http://127.0.0.1:{port}/say", {"text": "a"})
    shown = probed(capsys, f"http://127.0.0.1:{port}")
    assert shown["engine"] == "bentoml"
    assert quantities(shown) == {"running", "e2e", "completed", "failed"}


@pytest.mark.skipif(not installed("litserve"), reason="litserve is not installed; make probe-live has it")
def test_litserve_tells_nothing_and_that_is_said(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lit.py").write_text(LIT)
    (port,) = free_ports(1)
    start(PYTHON, "lit.py", str(port))
    ask(f"http://127.0.0.1:{port}/predict", {"text": "a"})
    assert main(["inference", "probe", f"http://127.0.0.1:{port}"]) == 2
    assert "LitServe has none" in capsys.readouterr().err


@pytest.mark.skipif(
    not installed("ts") or shutil.which("java") is None, reason="torchserve or Java is not installed; make probe-live has the former"
)  # fmt: skip
def test_torchserve_is_as_the_table_says(start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "handler.py").write_text(TORCH)
    (tmp_path / "store").mkdir()
    archive = [BIN / "torch-model-archiver", "--model-name", "echo", "--version", "1.0"]
    subprocess.run([*archive, "--handler", "handler.py", "--export-path", "store"], cwd=tmp_path, check=True)
    http, metrics, *others = free_ports(5)
    names = ("inference_address", "metrics_address", "management_address")
    lines = [f"{name}=http://127.0.0.1:{port}" for name, port in zip(names, (http, metrics, others[0]), strict=True)]
    lines += [f"grpc_inference_port={others[1]}", f"grpc_management_port={others[2]}"]
    (tmp_path / "config").write_text(
        "\n".join(
            [*lines, "metrics_mode=prometheus", "disable_token_authorization=true", "default_workers_per_model=1"]
        )
    )
    logs = {"LOG_LOCATION": str(tmp_path / "logs"), "METRICS_LOCATION": str(tmp_path / "logs")}
    command = [BIN / "torchserve", "--start", "--foreground", "--ncs", "--model-store", "store"]
    start(*command, "--models", "echo=echo.mar", "--ts-config", "config", environment=logs)
    ask(f"http://127.0.0.1:{http}/predictions/echo", "a")
    shown = probed(capsys, f"http://127.0.0.1:{metrics}")
    assert shown["engine"] == "torchserve"
    assert quantities(shown) >= {"e2e", "queue_time", "arrived"}


@pytest.mark.skipif(not installed("kserve"), reason="kserve is not installed; make probe-live has it")
def test_a_model_server_of_kserve_is_as_the_table_says(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "serve_echo.py").write_text(KSERVE)
    (port,) = free_ports(1)
    start(PYTHON, "serve_echo.py", str(port))
    ask(f"http://127.0.0.1:{port}/v1/models/echo:predict", {"instances": [1]})
    shown = probed(capsys, f"http://127.0.0.1:{port}")
    assert shown["engine"] == "kserve"
    assert quantities(shown) == {"e2e", "completed"}


@pytest.mark.skipif(not installed("pytriton"), reason="nvidia-pytriton is not installed; make probe-live has it")
def test_triton_is_as_the_table_says(start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The server that PyTriton brings, by itself and with a Python backend of the interpreter that runs it."""
    said = subprocess.run([PYTHON, "-c", WHERE], check=True, capture_output=True, text=True).stdout
    package, version, libraries, site = json.loads(said)
    shutil.copytree(f"{package}/tritonserver/backends/python", tmp_path / "backends" / "python")
    shutil.copy(f"{package}/tritonserver/python_backend_stubs/{version}/triton_python_backend_stub", tmp_path / "backends" / "python")  # fmt: skip
    (tmp_path / "models" / "echo" / "1").mkdir(parents=True)
    (tmp_path / "models" / "echo" / "1" / "model.py").write_text(TRITON)
    (tmp_path / "models" / "echo" / "config.pbtxt").write_text(TRITON_CONFIG)
    http, metrics = free_ports(2)
    flags = {"model-repository": tmp_path / "models", "backend-directory": tmp_path / "backends", "allow-grpc": "false"}
    flags |= {"http-address": "127.0.0.1", "http-port": http, "metrics-port": metrics, "allow-gpu-metrics": "false"}
    paths = {"LD_LIBRARY_PATH": f"{libraries}:{package}/../nvidia_pytriton.libs", "PYTHONPATH": site}
    start(f"{package}/tritonserver/bin/tritonserver", *(f"--{k}={v}" for k, v in flags.items()), environment=paths)
    tensor = {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}
    ask(f"http://127.0.0.1:{http}/v2/models/echo/infer", {"inputs": [tensor]})
    shown = probed(capsys, f"http://127.0.0.1:{metrics}")
    assert shown["engine"] == "triton"
    assert quantities(shown) == {"waiting", "e2e", "queue_time", "completed", "failed", "steps"}
