"""What agents say, checked: from the wire's messages to the collector's values.

Everything here raises Invalid (STREAM_PROTOCOL) for what no agent of ours would send.
"""

from __future__ import annotations

import zlib

import numpy as np
from google.protobuf.message import DecodeError

from switchgear.collector.blocks import Block, Deltas, protocol
from switchgear.collector.model import Event
from switchgear.collector.windows import REASON_CHARS_MAX, SERIES_MAX, Kind, SeriesKey
from switchgear.core import identity, names, rpc
from switchgear.v1alpha import telemetry_service_pb2 as pb

TEXT_BYTES_MAX = 2048
LABELS_MAX = 32
PCI_CHARS_MAX = 16
DETAIL_MAX = 16
NAME_CHARS_MAX = 256
#: Users of one node's GPUs: 16 GPUs in 7 instances, each shared by a few.
ASSOCIATIONS_MAX = 1024
PIDS_MAX = 64


def hello_of(message: pb.AgentMessage) -> pb.AgentHello:
    if not message.HasField("hello"):
        raise protocol("the first message must be a hello")
    hello = message.hello
    names.parse(hello.node, "nodes/*")
    identity.require_node(hello.node)
    if not 1 <= len(hello.epoch) <= NAME_CHARS_MAX:
        raise protocol(f"the hello's epoch must have 1 to {NAME_CHARS_MAX} characters")
    return hello


def dictionary_of(dictionary: pb.Dictionary) -> tuple[int, list[SeriesKey]]:
    """The first id, and the series from it on."""
    if dictionary.packed:
        dictionary = _unpacked(dictionary.packed)
    if len(dictionary.series) > SERIES_MAX:
        raise protocol(f"a node has at most {SERIES_MAX} series")
    first_id = dictionary.series[0].id if dictionary.series else 0
    if any(series.id != first_id + offset for offset, series in enumerate(dictionary.series)):
        raise protocol("series ids of a dictionary must count up by one")
    return first_id, [series_of(series) for series in dictionary.series]


def series_of(series: pb.Series) -> SeriesKey:
    texts = [series.metric, series.unit, *series.labels, *series.labels.values()]
    if not series.metric or len(series.labels) > LABELS_MAX or any(len(text) > NAME_CHARS_MAX for text in texts):
        raise protocol(
            f"series {series.id} needs a metric, at most {LABELS_MAX} labels and texts of at most {NAME_CHARS_MAX} characters"
        )
    kind = Kind.COUNTER if series.kind == pb.Series.COUNTER else Kind.GAUGE
    return SeriesKey(series.metric, series.unit, tuple(sorted(series.labels.items())), kind)


def _unpacked(packed: bytes) -> pb.Dictionary:
    unpacking = zlib.decompressobj()
    try:
        data = unpacking.decompress(packed, rpc.MESSAGE_BYTES_MAX)
        if not unpacking.eof:
            raise protocol(f"a packed dictionary is cut short, or has more than {rpc.MESSAGE_BYTES_MAX} bytes")
        return pb.Dictionary.FromString(data)
    except (zlib.error, DecodeError) as error:
        raise protocol(f"a packed dictionary cannot be read: {error}") from None


def block_of(message: pb.Block) -> Block:
    deltas = None
    if message.changed or message.classes or message.deltas:
        deltas = Deltas(
            message.changed,
            np.array(message.deltas, np.int64),
            message.classes,
            np.array(message.reclassed, np.uint32),
        )
    return Block(
        time_unix_ns=message.time_unix_ns,
        sequence=message.sequence,
        keyframe=message.keyframe,
        series_ids=message.series_ids,
        values_f64=message.values_f64,
        unknown={item.id: item.reason[:REASON_CHARS_MAX] or "no reason given" for item in message.unknown},
        deltas=deltas,
    )


def associations_of(message: pb.Associations) -> tuple[pb.Association, ...]:
    """They go out as they came: nothing here reads them."""
    for item in message.associations:
        texts = (item.job, item.pod, item.namespace, item.container, item.pod_uid, item.hpc_job)
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
