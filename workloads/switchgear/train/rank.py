"""Turns a fresh process into a rank and runs the user's program in it as Python itself would."""
# ruff: noqa: PTH100, PTH109, PTH120 -- strings, as Python itself puts them into sys.path and __file__

from __future__ import annotations

import ctypes
import importlib.machinery
import io
import os
import signal
import sys
import types
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from switchgear.train.steplog_format import StepLogWriter

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_libc = ctypes.CDLL(None, use_errno=True)


def isolate(spec: dict[str, Any], parent_pid: int) -> None:
    """First thing in the new process: dies with its zygote, leads its own session, has the rank's environment, folder and logs.

    Raises OSError when the working directory or a log file cannot be had.
    """
    os.setsid()
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:  # it ended before the line above took effect
        os.kill(os.getpid(), signal.SIGKILL)
    _libc.prctl(_PR_SET_NAME, b"rank%d" % spec["rank"], 0, 0, 0)
    _reset_signals()
    os.environ.clear()
    os.environ.update(spec["env"])
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    for fd, path in ((1, spec["stdout"]), (2, spec["stderr"])):
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        os.dup2(log, fd)
        os.close(log)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)
    os.chdir(spec["cwd"])
    process = sys.modules.get("multiprocessing.process")
    if process is not None:
        # Read at import, in the zygote's folder; workers that are spawned find the script relative to it.
        process.ORIGINAL_DIR = spec["cwd"]  # type: ignore[attr-defined]
    random = sys.modules.get("numpy.random")
    if random is not None:
        random.seed()  # as a fresh interpreter would be, instead of the same in all ranks and attempts


def _reset_signals() -> None:
    signal.set_wakeup_fd(-1)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def execute(argv: list[str]) -> NoReturn:
    """Becomes a program of any kind, found as a shell finds it; exit code 127 when there is none, 126 when it cannot be run."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and a program would inherit that
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(argv[0], argv)  # noqa: S606  # the user's program, without a shell
    except OSError as error:
        print(f"switchgear: cannot run {argv[0]}: {error.strerror}", file=sys.stderr)  # noqa: T201
        raise SystemExit(127 if isinstance(error, FileNotFoundError) else 126) from None


def set_threads(torch: Any, environment: dict[str, str]) -> None:
    """Gives torch the intra-op threads that the job asked for, or one a core; the zygote held them at one."""
    wanted = environment.get("OMP_NUM_THREADS", "")
    given = wanted.isdigit() and int(wanted) > 0
    torch.set_num_threads(int(wanted) if given else len(os.sched_getaffinity(0)))


def run(argv: list[str], log: StepLogWriter | None) -> None:
    """Runs a script (`FILE ARGS`) or module (`-m MODULE ARGS`) as `__main__`; returns when it ends.

    What it raises is printed by `sys.excepthook` without our frames, noted in the step log, and becomes SystemExit(1).
    """
    main = types.ModuleType("__main__")
    main.__dict__.update(__builtins__=__builtins__, __annotations__={})
    sys.modules["__main__"] = main
    sys.orig_argv = [sys.executable, *argv]
    try:
        if argv[0] == "-m":
            _run_module(argv[1:])
        else:
            _run_script(main, argv)
    except SystemExit as error:
        if log is not None and not isinstance(error.code, int | None):
            log.exception(_one_line(error))  # `sys.exit("why")`: Python prints it and ends with 1
        raise
    except BaseException as error:
        if log is not None:
            log.exception(_one_line(error))
        error.__traceback__ = _without_our_frames(error.__traceback__)
        sys.excepthook(type(error), error, error.__traceback__)
        code = 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    else:
        return
    raise SystemExit(code)


def _run_script(main: types.ModuleType, argv: list[str]) -> None:
    path = os.path.abspath(argv[0])
    sys.argv = list(argv)
    _add_to_path(os.path.dirname(os.path.realpath(path)))
    main.__file__ = path
    main.__loader__ = importlib.machinery.SourceFileLoader("__main__", path)
    with io.open_code(path) as file:
        code = compile(file.read(), path, "exec", dont_inherit=True)
    exec(code, main.__dict__)  # noqa: S102  # running the user's program is the product


def _run_module(argv: list[str]) -> None:
    import runpy

    sys.argv = list(argv)
    _add_to_path(os.getcwd())
    # What `python -m` itself calls; `runpy.run_module` would not leave a `__main__` that pickle and spawn can find.
    runpy._run_module_as_main(argv[0])  # type: ignore[attr-defined]


def _add_to_path(folder: str) -> None:
    if not getattr(sys.flags, "safe_path", False):
        sys.path.insert(0, folder)


def _without_our_frames(traceback: types.TracebackType | None) -> types.TracebackType | None:
    while traceback is not None:
        name = traceback.tb_frame.f_code.co_filename
        if name != __file__ and not name.startswith("<frozen runpy"):
            break
        traceback = traceback.tb_next
    return traceback


def _one_line(error: BaseException) -> str:
    try:
        return f"{type(error).__qualname__}: {error}"
    except Exception:  # a broken __str__ of the user's exception
        return type(error).__qualname__
