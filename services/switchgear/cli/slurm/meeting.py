"""Where the nodes of a Slurm job meet and how they trust each other, without a flag: each comes to the same by itself."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from switchgear.access import pki
from switchgear.cli.multinode import is_here
from switchgear.cli.run_options import Rendezvous as Meeting
from switchgear.cli.slurm.task import Task
from switchgear.core import names, rpc
from switchgear.core.errors import FailedPrecondition, Reason, SwitchgearError, Unavailable
from switchgear.core.tls import TlsFiles
from switchgear.slurm.client import Slurm

#: What may pass until the first node has made certificates and the file system shows them here.
CERTIFICATES_S = 120.0
POLL_S = 0.2


async def meeting_from(task: Task, given: Meeting | None, nodes: int, slurm: Slurm) -> Meeting:
    """As the flags say, and else at the first node of the step.

    nodes: that take part; those beyond have no place of their own. Raises Unavailable when nobody knows the first node's address.
    """
    found = given or Meeting(host=await _address(task.nodes[0], slurm), port=task.port, hosts=task.node_rank == 0)
    rank = found.node_rank
    if rank is None and task.node_rank < nodes:
        rank = task.node_rank
    return replace(found, run_id=task.run_id, node=names.to_id(task.node), node_rank=rank)


def certificates(meeting: Meeting, folder: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Environment with which this process and the others of the run prove that they are of it; empty where nothing is needed.

    The node that keeps the job together makes a certificate authority for this run alone, and the others wait for its files.
    folder: on a file system that all nodes see and only this user can read. Raises FailedPrecondition when they do not come.
    """
    if rpc.is_loopback(meeting.host) or TlsFiles.from_environment(environment):
        return {}
    files = pki.Pki(folder)
    if meeting.hosts or (meeting.hosts is None and is_here(meeting.host)):
        pki.create(folder, [meeting.host, socket.gethostname()], time.time_ns())
    deadline_s = time.monotonic() + CERTIFICATES_S
    while not files.certificate.exists():
        if time.monotonic() > deadline_s:
            raise FailedPrecondition(
                f"{folder} has no certificates after {CERTIFICATES_S:g} s: the first node of the job makes them, on a file system that all "
                "nodes see; name such a folder with SWITCHGEAR_STATE_DIR, or give all nodes SWITCHGEAR_TLS_CA, "
                "SWITCHGEAR_TLS_CERTIFICATE and SWITCHGEAR_TLS_KEY",
                Reason.TLS_FILES,
                path=str(folder),
            )
        time.sleep(POLL_S)
    return files.tls_files.environment()


async def _address(node: str, slurm: Slurm) -> str:
    """The node's name where it can be looked up, and else what Slurm reaches it by."""
    try:
        socket.getaddrinfo(node, None)
        return node
    except OSError:
        pass
    problem = "Slurm does not know it"
    try:
        if found := await slurm.nodes([node]):
            return found[0].address
    except SwitchgearError as error:
        problem = error.message
    raise Unavailable(
        f"no name service knows {node}, the first node of this job, and {problem}; name it with --rdzv-endpoint HOST:PORT",
        Reason.SERVER_UNREACHABLE,
        address=node,
    )
