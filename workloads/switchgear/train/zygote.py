"""A process that has imported torch once and forks the ranks of each attempt, so that a restart imports nothing again.

Run by path with the job's own interpreter: `python zygote.py SOCKET_FD OPTIONS`, OPTIONS a JSON object: preload (modules that the
user wants imported), torch (false: not even torch), nice (of the imports). It stays single-threaded and touches no accelerator, since
neither survives a fork; when the preload breaks that, ranks are spawned instead, with the reason told. It speaks frames (4-byte
big-endian length, then JSON) with its launcher:

    down  {"op": "start", "ranks": [SPEC, ...]}                  SPEC: rank, generation, argv, env, cwd, stdout, stderr,
                                                                 step_log, checkpoint_directory, program (argv is executed)
          {"op": "signal", "pids": [PID, ...], "signal": N}      to the process groups of those ranks that still live
          {"op": "lease", "until_s": T}                          no rank may run after T on CLOCK_MONOTONIC; without this
                                                                 message they may run for ever
    up    {"event": "ready", "pid", "torch", "threads", "mode": "fork" | "spawn", "reason", "failed", "files"}
                                                                 failed: why modules of the preload are missing; files: those
                                                                 that were imported, with their mtime_ns
          {"event": "started", "rank", "pid", "time_unix_ns"}
          {"event": "start_failed", "rank", "message"}
          {"event": "exited", "rank", "pid", "code", "signalled", "time_unix_ns"}
                                                                 code as of waitpid, negative for a signal; signalled: a
                                                                 signal of ours reached it before it ended
          {"event": "gone"}                                      no process that any rank left behind lives any more

Orphans are its children (PR_SET_CHILD_SUBREAPER), so no descendant of a rank escapes it, not even by leaving the session. When
the socket closes (the launcher died) it kills them all and ends. When the lease is over it kills them by itself, for a launcher
that is stopped or waits for a dead file system cannot; both read the same clock, so no delay between them moves the deadline.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import importlib
import importlib.util
import json
import os
import selectors
import signal
import socket
import struct
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_prctl = ctypes.CDLL(None).prctl
#: How long the last act may take; a process in uninterruptible sleep cannot be killed at all.
_END_DEADLINE_S = 5.0


def _sibling(name: str) -> Any:
    """A file beside this one, under a name that no module of the user's can collide with."""
    full_name = f"_switchgear_{name}"
    spec = importlib.util.spec_from_file_location(full_name, Path(__file__).with_name(f"{name}.py"))
    if spec is None or spec.loader is None:
        raise ImportError(f"{name}.py is missing beside {__file__}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[full_name] = module
    spec.loader.exec_module(module)
    return module


if TYPE_CHECKING:
    from switchgear.train import hook, phases, preload, rank, steplog_format
else:
    steplog_format, hook, phases = _sibling("steplog_format"), _sibling("hook"), _sibling("phases")
    rank, preload = _sibling("rank"), _sibling("preload")


class _ForkedRankError(BaseException):
    """Unwinds the zygote's frames in the forked child; carries the rank's specification."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec


class Zygote:
    """The single-threaded loop: commands in, events out, children reaped."""

    def __init__(self, connection: socket.socket, options: dict[str, Any]) -> None:
        self._connection = connection
        self._options = options
        self._received = b""
        self._ranks: dict[int, int] = {}  # pid -> rank, until reaped
        self._signalled: set[int] = set()
        self._killed: set[int] = set()
        self._clean = True  # no child of any kind is left
        self._spawn = False
        self._lease_until_s: float | None = None
        self._selector = selectors.DefaultSelector()
        self._wakeup_read, self._wakeup_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def serve(self) -> None:
        """Returns when the launcher is gone; raises _ForkedRankError in each forked child."""
        # A preload may never return, and nobody reads the socket meanwhile.
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if self._launcher_is_gone():
            return
        self._preload()
        _prctl(_PR_SET_PDEATHSIG, 0, 0, 0, 0)
        self._selector.register(self._connection, selectors.EVENT_READ)
        self._selector.register(self._wakeup_read, selectors.EVENT_READ)
        while True:
            ready = {key.fileobj for key, _ in self._selector.select(self._lease_left_s())}
            if self._wakeup_read in ready:
                os.read(self._wakeup_read, 4096)
                self._reap()
            if self._connection in ready and not self._receive():
                return
            if self._lease_left_s() == 0:
                self._end_lease()

    def _launcher_is_gone(self) -> bool:
        try:
            return self._connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _preload(self) -> None:
        with preload.nice(self._options["nice"]):
            torch = preload.torch() if self._options["torch"] else None
            before = set(sys.modules)
            failed = preload.of_user(self._options["preload"])
        reason = preload.why_not_fork(has_children=_children_left())
        self._spawn = bool(reason)
        _kill_children()
        # Only now: what was imported may have set handlers of its own.
        _prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wakeup_write, warn_on_full_buffer=False)
        # Keeps the collector's marks out of pages that all ranks share.
        gc.collect()
        gc.freeze()
        self._send(
            event="ready",
            pid=os.getpid(),
            torch=None if torch is None else str(torch.__version__),
            threads=len(list(Path("/proc/self/task").iterdir())),
            mode="spawn" if self._spawn else "fork",
            reason=reason,
            failed=failed,
            files=preload.files_of(("torch", *(sys.modules.keys() - before))),
        )

    def end(self) -> None:
        """Kills every descendant and waits until all are gone."""
        self._connection.close()
        deadline = time.monotonic() + _END_DEADLINE_S
        while _children_left() and time.monotonic() < deadline:
            for pid in self._ranks:
                _signal_group(pid, signal.SIGKILL)
            _kill_children()
            self._reap()
            time.sleep(0.002)

    def _receive(self) -> bool:
        try:
            data = self._connection.recv(1 << 20)
        except ConnectionResetError:
            return False
        if not data:
            return False
        self._received += data
        while len(self._received) >= 4:
            (length,) = struct.unpack_from(">I", self._received)
            if len(self._received) < 4 + length:
                break
            frame = self._received[4 : 4 + length]
            self._received = self._received[4 + length :]
            self._handle(json.loads(frame))
        return True

    def _handle(self, message: dict[str, Any]) -> None:
        if message["op"] == "start":
            self._start(message["ranks"])
        elif message["op"] == "lease":
            self._lease_until_s = message["until_s"]
        elif message["op"] == "signal":
            for pid in message["pids"]:
                if pid in self._ranks:
                    self._signal_rank(pid, message["signal"])

    def _start(self, specs: list[dict[str, Any]]) -> None:
        """All of them or none: a rank without its peers only waits, and nobody would look after it."""
        self._clean = False
        for spec in specs:
            try:
                if self._lease_until_s is not None and time.monotonic() >= self._lease_until_s:
                    raise TimeoutError(errno.ETIMEDOUT, "the lease of its launcher is over")
                pid = self._spawn_rank(spec) if self._spawn else self._fork_rank(spec)
            except OSError as error:
                self._send(event="start_failed", rank=spec["rank"], message=f"cannot start a process: {error.strerror}")
                self._kill_ranks()
                break
            self._ranks[pid] = spec["rank"]
            self._send(event="started", rank=spec["rank"], pid=pid, time_unix_ns=time.time_ns())
        self._reap()

    def _lease_left_s(self) -> float | None:
        """Time to wait for its end; None when there is nothing to wait for, 0 when ranks must end now."""
        if self._lease_until_s is None or not self._ranks.keys() - self._killed:
            return None
        return max(0.0, self._lease_until_s - time.monotonic())

    def _end_lease(self) -> None:
        print("the lease is over and the launcher has not acted: ending the ranks", file=sys.stderr)  # noqa: T201
        self._kill_ranks()

    def _kill_ranks(self) -> None:
        for pid in self._ranks:
            self._signal_rank(pid, signal.SIGKILL)

    def _signal_rank(self, pid: int, number: int) -> None:
        if not _has_ended(pid):
            self._signalled.add(pid)
        if number == signal.SIGKILL:
            self._killed.add(pid)
        _signal_group(pid, number)

    def _fork_rank(self, spec: dict[str, Any]) -> int:
        sys.stdout.flush()
        sys.stderr.flush()
        zygote_pid = os.getpid()
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            self._selector.close()
            self._connection.close()
            os.close(self._wakeup_read)
            os.close(self._wakeup_write)
            spec["zygote_pid"] = zygote_pid
            raise _ForkedRankError(spec)
        return pid

    def _spawn_rank(self, spec: dict[str, Any]) -> int:
        spec["zygote_pid"] = os.getpid()
        handover = os.memfd_create("rank")
        try:
            os.write(handover, json.dumps(spec).encode())
            os.lseek(handover, 0, os.SEEK_SET)
            argv = [sys.executable, __file__, "--rank"]
            return os.posix_spawn(sys.executable, argv, spec["env"], file_actions=[(os.POSIX_SPAWN_DUP2, handover, 0)])
        finally:
            os.close(handover)

    def _reap(self) -> None:
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                break
            if found is None:
                if not self._ranks:
                    _kill_children()
                return
            pid = found.si_pid
            if pid in self._ranks:
                # While it is a zombie its number cannot be given to another group: take what it left with it.
                _signal_group(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            number = self._ranks.pop(pid, None)
            if number is not None:
                self._send(
                    event="exited",
                    rank=number,
                    pid=pid,
                    code=os.waitstatus_to_exitcode(status),
                    signalled=pid in self._signalled,
                    time_unix_ns=time.time_ns(),
                )
                self._signalled.discard(pid)
                self._killed.discard(pid)
        if not self._clean:
            self._clean = True
            self._send(event="gone")

    def _send(self, **message: Any) -> None:
        data = json.dumps(message).encode()
        try:
            self._connection.sendall(struct.pack(">I", len(data)) + data)
        except OSError:
            pass  # the launcher is gone: the loop sees the end of the stream next


def _children_left() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _signal_group(pid: int, number: int) -> None:
    """Sends to an unreaped rank and its group; it may not have made its group yet, and a stopped process must wake to end."""
    try:
        send = os.killpg
        send(pid, number)
    except ProcessLookupError:
        send = os.kill
        send(pid, number)
    if number != signal.SIGKILL:
        send(pid, signal.SIGCONT)


def _kill_children() -> None:
    """SIGKILL to every child; what they leave becomes our child in turn, and SIGCHLD brings us back here."""
    me = str(os.getpid())
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            if fields[1] == me:
                os.kill(int(entry.name), signal.SIGKILL)
        except OSError:
            continue


def become_rank(spec: dict[str, Any]) -> None:
    """Runs the user's program in this process, watched."""
    rank.isolate(spec, spec["zygote_pid"])
    if spec["program"]:
        rank.execute(spec["argv"])
    log = None
    try:
        log = steplog_format.StepLogWriter(spec["step_log"], spec["generation"], spec["rank"])
    except (OSError, ValueError) as error:
        print(f"switchgear: no progress is recorded: {error}", file=sys.stderr)  # noqa: T201
    torch_present = importlib.util.find_spec("torch") is not None
    if torch_present:
        rank.set_threads(importlib.import_module("torch"), spec["env"])
    if log is not None:
        _watch(log, spec["checkpoint_directory"], torch_present=torch_present)
    rank.run(spec["argv"], log)


def _watch(log: steplog_format.StepLogWriter, checkpoint_directory: str, *, torch_present: bool) -> None:
    hook.recorder = log
    try:
        hook.answer_stack_requests(log, steplog_format.STACK_SIGNAL, steplog_format.STACK_FILE)
    except OSError as error:
        print(f"switchgear: this rank does not tell its stack: {error}", file=sys.stderr)  # noqa: T201
    if torch_present:
        try:
            hook.watch_steps(log)
            phases.watch_evaluations(log)
            phases.watch_saves(log, steplog_format.PHASE_CHECKPOINT)
        except ImportError as error:
            print(f"switchgear: steps are not counted: {error}", file=sys.stderr)  # noqa: T201
    if checkpoint_directory:
        hook.watch_checkpoints(log, checkpoint_directory)


def _main() -> dict[str, Any] | None:
    # Python put this folder in front: nothing here may shadow what torch or the user's script imports.
    if sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
        del sys.path[0]
    if sys.argv[1] == "--rank":
        with open(0, encoding="utf-8", closefd=False) as file:
            return dict(json.load(file))
    if "SLURM_JOB_ID" in os.environ:
        # Slurm sends these to every process of a step, and ranks must outlive that to save; a rank takes SIGTERM again.
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    zygote = Zygote(connection, json.loads(sys.argv[2]))
    try:
        zygote.serve()
    except _ForkedRankError as forked:
        return forked.spec
    zygote.end()
    os._exit(0)  # nothing of ours is left to flush, and torch's own teardown takes its time


if __name__ == "__main__":
    _spec = _main()
    if _spec is not None:
        become_rank(_spec)
