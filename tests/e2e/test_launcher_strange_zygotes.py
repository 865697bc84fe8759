"""A launcher whose zygote has moods that the true one should never have."""

from __future__ import annotations

import sys
from pathlib import Path

from launcher_world import Launcher, until

from switchgear.v1alpha import launcher_service_pb2 as pb

STRANGE_ZYGOTE = """#!{python}
import json, socket, struct, subprocess, sys
connection = socket.socket(fileno=int(sys.argv[2]))
def send(**message):
    data = json.dumps(message).encode()
    connection.sendall(struct.pack(">I", len(data)) + data)
send(event="ready", torch=None, reason="", pid=0, threads=1, mode="fork")
{body}
"""


READ = """
def read():
    (length,) = struct.unpack(">I", connection.recv(4, socket.MSG_WAITALL))
    return json.loads(connection.recv(length, socket.MSG_WAITALL))
while read()["op"] != "start":
    pass
child = subprocess.Popen(["sleep", "60"], start_new_session=True)
"""


def strange_zygote(folder: Path, body: str) -> dict[str, str]:
    """A spec whose interpreter plays a zygote with moods that the true one should never have."""
    path = folder / "python"
    path.write_text(STRANGE_ZYGOTE.format(python=sys.executable, body=READ + body))
    path.chmod(0o755)
    return {"python": str(path)}


async def test_a_zygote_that_talks_nonsense_is_replaced(tmp_path: Path) -> None:
    spec = strange_zygote(
        tmp_path, 'send(event="started", rank=0, pid=child.pid, time_unix_ns=1); send(event="hm"); read()'
    )
    async with Launcher(tmp_path, spec=spec) as launcher:
        await launcher.start(1)
        (exited,) = await launcher.wait(1, "rank_exited")
        await launcher.wait(1, "attempt_stopped")
        assert "unknown event 'hm' from the zygote" in exited.stderr_tail
        await launcher.start(2)
        await launcher.wait(2, "rank_started")


async def test_a_rank_that_is_started_for_an_attempt_that_has_ended_is_killed(tmp_path: Path) -> None:
    spec = strange_zygote(
        tmp_path,
        """
send(event="start_failed", rank=0, message="no")
send(event="gone")
send(event="started", rank=1, pid=child.pid, time_unix_ns=1)
while (message := read()) != {"op": "signal", "pids": [child.pid], "signal": 9}:
    pass
child.kill()
open("killed", "w").close()
""",
    )
    async with Launcher(tmp_path, spec=spec) as launcher:
        await launcher.start(1)
        await launcher.wait(1, "attempt_stopped")
        await until((tmp_path / "killed").exists)


async def test_a_hello_tells_ranks_that_have_exited_from_an_attempt_that_is_gone(tmp_path: Path) -> None:
    """Data-loader workers and asynchronous writers may outlive the last rank for a moment."""
    spec = strange_zygote(
        tmp_path,
        """
import os, time
send(event="started", rank=0, pid=child.pid, time_unix_ns=1)
child.kill()
send(event="exited", rank=0, pid=child.pid, code=child.wait(), signalled=False, time_unix_ns=2)
while not os.path.exists("go"):
    time.sleep(0.01)
send(event="gone")
read()
""",
    )

    async with Launcher(tmp_path, spec=spec, nproc=1) as launcher:

        def hello() -> pb.LauncherHello:
            return launcher.supervisor.hello().hello

        assert hello().all_gone, "nothing has ever run"
        await launcher.start(1)
        await launcher.wait(1, "rank_exited")
        assert (len(hello().ranks_alive), hello().all_gone) == (0, False)
        (tmp_path / "go").touch()
        await launcher.wait(1, "attempt_stopped")
        assert (len(hello().ranks_alive), hello().all_gone) == (0, True)
