"""Every flag of torchrun (torch 2.13.0) by name: whether it does the same here, something else, or nothing, and why.

docs/torchrun.md has the same table for people; a test holds both equal to torchrun's own parser.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Fate(StrEnum):
    SAME = "same"
    DIFFERS = "differs"
    IGNORED = "ignored"


@dataclass(frozen=True, slots=True)
class TorchFlag:
    """A flag of torchrun. name: its long form with dashes; the form with underscores is accepted as well.

    metavar: empty for a switch. help: empty for a flag that is ignored. why: for the table in the docs.
    """

    name: str
    fate: Fate
    why: str
    metavar: str = ""
    help: str = ""
    short: str = ""

    @property
    def field(self) -> str:
        return self.name[2:].replace("-", "_")

    @property
    def variable(self) -> str:
        """The environment variable that stands for it when it is not given."""
        return f"PET_{self.field.upper()}"


_SAME, _DIFFERS, _IGNORED = Fate.SAME, Fate.DIFFERS, Fate.IGNORED

FLAGS = (
    TorchFlag(
        "--nnodes",
        _SAME,
        "with `MIN:MAX` the job starts with MAX nodes, or with fewer (at least MIN) when no more are to be had",
        "N|MIN:MAX",
        "nodes (default: 1)",
    ),
    TorchFlag(
        "--nproc-per-node",
        _SAME,
        "`auto`, `gpu` and `cpu` count without importing torch: NVIDIA GPUs by NVML under `CUDA_VISIBLE_DEVICES`, processors by "
        "affinity; on a server, the GPUs of its nodes. Give a number for `xpu` and other devices",
        "K|auto|gpu|cpu",
        "ranks a node, one GPU each on a cluster (default: 1)",
    ),
    TorchFlag(
        "--rdzv-backend",
        _DIFFERS,
        "`static` and `c10d` mean the same here: the machine that `--rdzv-endpoint` names keeps the job together. etcd is refused, "
        "since no store of others is needed",
        "static|c10d",
        "accepted for torchrun's sake; both mean the same",
    ),
    TorchFlag(
        "--rdzv-endpoint",
        _SAME,
        "one machine of the job and a free port of it (default: 29400). Beyond loopback it takes certificates: see below",
        "HOST[:PORT]",
        "several nodes without a server: one machine of the job, at which all meet",
    ),
    TorchFlag(
        "--rdzv-id",
        _SAME,
        "it also names the job, and its logs, on each machine",
        "ID",
        "what the nodes of one job name alike",
    ),
    TorchFlag(
        "--rdzv-conf",
        _SAME,
        "`join_timeout` (default: 600 s), `last_call_timeout` (30 s) and `is_host`; other keys tune torch's own store and are ignored",
        "KEY=VALUE,…",
        "join_timeout and last_call_timeout in seconds, is_host",
    ),
    TorchFlag("--standalone", _SAME, "on this machine, without a server", "", "run on this machine, with no server"),
    TorchFlag(
        "--max-restarts",
        _DIFFERS,
        "the default is 3 instead of 0; only failures of the script itself use them up, and an error that comes twice at the same step "
        "ends the job at once. 0: never restart",
        "N",
        "restarts that the script's own failures may use; faults of the machines do not count; 0: never restart (default: 3)",
    ),
    TorchFlag(
        "--monitor-interval",
        _IGNORED,
        "the end of a rank is an event here, seen within milliseconds; there is no interval at which anybody looks",
        "SECONDS",
    ),
    TorchFlag(
        "--start-method",
        _IGNORED,
        "ranks are forked from a process that has imported torch already; where that cannot be, each is a process of its own",
        "spawn|fork|forkserver",
    ),
    TorchFlag(
        "--event-log-handler",
        _IGNORED,
        "events of the job are incidents: `switchgear incidents`, REST and Prometheus",
        "NAME",
    ),
    TorchFlag("--role", _SAME, "ROLE_NAME of the ranks", "NAME", "what the ranks see as ROLE_NAME (default: default)"),
    TorchFlag("--module", _SAME, "as `python -m`", "", "the script is a module, as with python -m", short="-m"),
    TorchFlag(
        "--no-python",
        _SAME,
        "any program; its steps cannot be counted, so that its end and a SIGSTOP are seen and a hang is not",
        "",
        "the script is a program of any kind and is not run with Python",
    ),
    TorchFlag(
        "--run-path",
        _SAME,
        "every script runs so here: as `__main__` in a process that Python is already up in. It wins over `--no-python`",
        "",
        "accepted for torchrun's sake: every script runs so",
    ),
    TorchFlag(
        "--log-dir",
        _DIFFERS,
        "logs are always kept, in the state directory when nothing is said; the files are `GENERATION/rank-R.{stdout,stderr}.log`, "
        "of the last 20 generations",
        "DIR",
        "folder for the ranks' logs (default: in the state directory)",
    ),
    TorchFlag(
        "--redirects",
        _DIFFERS,
        "both streams are always in the log; what is redirected is not shown in the terminal",
        "0|1|2|3|RANK:N,…",
        "output that the terminal does not show: 1 stdout, 2 stderr, 3 both, also by local rank as in 0:1,1:3 (default: 0)",
        "-r",
    ),
    TorchFlag(
        "--tee",
        _DIFFERS,
        "`3` is the default here; it only matters beside `--redirects`. Lines begin with `[rank R]`, always",
        "0|1|2|3|RANK:N,…",
        "output that the terminal shows although --redirects has it",
        "-t",
    ),
    TorchFlag(
        "--local-ranks-filter",
        _SAME,
        "of the terminal, not of the logs",
        "0,1,…",
        "local ranks whose output the terminal shows (default: all)",
    ),
    TorchFlag(
        "--duplicate-stdout-filters",
        _IGNORED,
        "every line is in the rank's log, where `grep` finds it",
        "TEXT,…",
    ),
    TorchFlag("--duplicate-stderr-filters", _IGNORED, "as with stdout", "TEXT,…"),
    TorchFlag(
        "--node-rank",
        _SAME,
        "0 is the node that keeps the job together, whatever `--rdzv-endpoint` names; without it, nodes are numbered as they come",
        "R",
        "place of this node among the nodes of a job without a server",
    ),
    TorchFlag(
        "--master-addr",
        _DIFFERS,
        "stands for the host of `--rdzv-endpoint`. The ranks' own MASTER_ADDR is the first node's address",
        "HOST",
        "host of --rdzv-endpoint, by its older name",
    ),
    TorchFlag(
        "--master-port",
        _DIFFERS,
        "stands for the port of `--rdzv-endpoint`, with default 29500. The ranks' own MASTER_PORT is a free one, new in each generation, "
        "so that no restart meets what an older one left",
        "PORT",
        "port of --rdzv-endpoint, by its older name",
    ),
    TorchFlag(
        "--local-addr",
        _SAME,
        "default: the address from which this machine reaches the rendezvous",
        "HOST",
        "address at which the other nodes' ranks reach this one",
    ),
    TorchFlag("--logs-specs", _IGNORED, "a hook for other classes of logs in torch's own launcher", "NAME"),
    TorchFlag("--numa-binding", _IGNORED, "ranks run on all processors of the node; bind them in the script", "MODE"),
    TorchFlag(
        "--signals-to-handle",
        _DIFFERS,
        "each is handed to the ranks, which have `--shutdown-timeout` to end; SIGINT reaches them as SIGTERM, since a rank that waits for "
        "a peer does not take the former. Jobs on a server end with `switchgear cancel`",
        "SIGNAL,…",
        "signals that end the job after its ranks have had them (default: SIGTERM,SIGINT,SIGHUP,SIGQUIT)",
    ),
    TorchFlag(
        "--shutdown-timeout",
        _SAME,
        "default: TORCH_ELASTIC_SHUTDOWN_TIMEOUT or 30 s; a second signal ends the wait. On a server the grace is its own",
        "SECONDS",
        "what the ranks get to end by themselves when a signal ends the job (default: 30)",
    ),
    TorchFlag(
        "--virtual-local-rank",
        _SAME,
        "each rank sees its own GPU as device 0",
        "",
        "each rank sees one GPU, its own, as device 0, and 0 as LOCAL_RANK",
    ),
)
IGNORED = tuple(flag for flag in FLAGS if flag.fate is Fate.IGNORED)


def add_flags(parser: argparse.ArgumentParser, environment: Mapping[str, str]) -> None:
    """Adds them all. Values stay text, None when neither given nor in the environment; switches are booleans."""
    for flag in FLAGS:
        underscored = f"--{flag.field}"
        names = [flag.short, flag.name, underscored if underscored != flag.name else ""]
        given = environment.get(flag.variable)
        help_text = flag.help or argparse.SUPPRESS
        if flag.metavar:
            parser.add_argument(*filter(None, names), default=given, metavar=flag.metavar, help=help_text)
        else:
            switched_on = given is not None and given.strip() not in ("", "0")
            parser.add_argument(*filter(None, names), action="store_true", default=switched_on, help=help_text)


def ignored(args: argparse.Namespace) -> list[str]:
    """Names of the flags that were given and change nothing."""
    return [flag.name for flag in IGNORED if getattr(args, flag.field) is not None]
