"""What agents say, checked: from the wire's messages to the collector's values.

Everything here raises Invalid (STREAM_PROTOCOL) for what no agent of ours would send.
"""

from __future__ import annotations

from array import array

import numpy as np

from switchgear.collector.blocks import Block, Deltas, protocol
from switchgear.collector.dictionary import NAME_CHARS_MAX
from switchgear.collector.model import Event
from switchgear.collector.windows import REASON_CHARS_MAX
from switchgear.core import identity, names
from switchgear.v1alpha import telemetry_service_pb2 as pb

TEXT_BYTES_MAX = 2048
#: Of one message.
BLOCKS_MAX = 64
PCI_CHARS_MAX = 16
DETAIL_MAX = 16
#: Users of one node's GPUs: 16 GPUs in 7 instances, each shared by a few.
ASSOCIATIONS_MAX = 1024
PIDS_MAX = 64
_NO_NUMBERS = np.zeros(0, np.int64)
_NO_CLASSES = np.zeros(0, np.uint32)


def hello_of(message: pb.AgentMessage) -> pb.AgentHello:
    if not message.HasField("hello"):
        raise protocol("the first message must be a hello")
    hello = message.hello
    names.parse(hello.node, "nodes/*")
    identity.require_node(hello.node)
    if not 1 <= len(hello.epoch) <= NAME_CHARS_MAX:
        raise protocol(f"the hello's epoch must have 1 to {NAME_CHARS_MAX} characters")
    return hello


def block_of(message: pb.Block, time_unix_ns: int | None = None) -> Block:
    """time_unix_ns: of the block on our clock, where the agent's is off."""
    changed, numbers, classes = message.changed, message.deltas, message.classes
    deltas = None
    if changed or classes or numbers:
        reclassed = message.reclassed
        deltas = Deltas(
            changed,
            # From a list by way of `array`: half of what numpy takes to look at each number of a message by itself.
            np.frombuffer(array("q", numbers[:]), np.int64) if numbers else _NO_NUMBERS,
            classes,
            np.array(reclassed[:], np.uint32) if reclassed else _NO_CLASSES,
        )
    unknown = message.unknown
    return Block(
        time_unix_ns=message.time_unix_ns if time_unix_ns is None else time_unix_ns,
        sequence=message.sequence,
        keyframe=message.keyframe,
        series_ids=message.series_ids,
        values_f64=message.values_f64,
        unknown={item.id: item.reason[:REASON_CHARS_MAX] or "no reason given" for item in unknown} if unknown else {},
        deltas=deltas,
    )


def associations_of(message: pb.Associations) -> tuple[pb.Association, ...]:
    """They go out as they came: nothing here reads them."""
    for item in message.associations:
        slurm = item.slurm
        texts = (
            *(item.job, item.pod, item.namespace, item.container, item.pod_uid, item.hpc_job),
            *(slurm.user, slurm.account, slurm.partition, slurm.qos, slurm.array_job, slurm.het_job),
        )
        if item.gpu < 0 or len(item.pids) > PIDS_MAX or any(len(text) > NAME_CHARS_MAX for text in texts):
            raise protocol(
                f"an association names a GPU from 0 on, at most {PIDS_MAX} processes, and texts of {NAME_CHARS_MAX} characters"
            )
    if len(message.associations) > ASSOCIATIONS_MAX:
        raise protocol(f"a node has at most {ASSOCIATIONS_MAX} associations")
    return tuple(message.associations)


def event_of(node: str, event: pb.Event) -> Event:
    if not (1 <= len(event.boot_id) <= 128 and 1 <= len(event.source) <= 64 and 1 <= len(event.kind) <= 64):
        raise protocol("an event needs a boot_id (128 characters at most), a source and a kind (64 at most)")
    if not 1 <= event.sequence < 2**63 or (event.HasField("gpu") and event.gpu < 0):
        raise protocol("an event's sequence counts from 1, and its gpu from 0")
    texts = [*event.detail, *event.detail.values()]
    if (
        len(event.pci) > PCI_CHARS_MAX
        or len(texts) > 2 * DETAIL_MAX
        or any(len(text) > NAME_CHARS_MAX for text in texts)
    ):
        raise protocol(
            f"an event's pci has at most {PCI_CHARS_MAX} characters, its detail {DETAIL_MAX} entries of {NAME_CHARS_MAX}"
        )
    return Event(
        node=node,
        boot_id=_text(event.boot_id),
        source=_text(event.source),
        sequence=event.sequence,
        time_unix_ns=event.time_unix_ns,
        kind=_text(event.kind),
        gpu=event.gpu if event.HasField("gpu") else None,
        code=event.code if event.HasField("code") else None,
        text=_text(event.text.encode()[:TEXT_BYTES_MAX].decode(errors="ignore")),
        simulated=event.simulated,
        pci=_text(event.pci),
        detail={_text(name): _text(value) for name, value in event.detail.items()},
    )


def _text(value: str) -> str:
    """PostgreSQL stores every character but this one."""
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}")
