"""Streams that no agent of ours would send, from a seed: an agent's own with something wrong in it, or plain rubbish."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable
from functools import cache
from itertools import count

from switchgear.agent.messages import dictionary_message, packed
from switchgear.agent.readings import Kind, known, series
from switchgear.agent.sampler import Sampler
from switchgear.v1alpha import telemetry_service_pb2 as pb

SERIES = 40
TICKS = 64
#: Streams of a few nodes come again and again, so that they meet windows of those before.
NODES = 64
_INT64 = (-(2**63), -(2**62), -1, 0, 1, 2**53, 2**62, 2**63 - 1)
_UINT64 = (0, 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1)
_UINT32 = (0, SERIES - 1, SERIES, 4095, 4096, 2**16, 2**31, 2**32 - 1)
_FLOATS = (float("nan"), float("inf"), float("-inf"), -0.0, 5e-324, 1.8e308)
_LONG = "a" * 70_000
_TEXTS = ("", "\0", "é" * 300, "\N{REPLACEMENT CHARACTER}" * 64, "nodes/n1", "../../etc")

Mutation = Callable[["Hostile", pb.AgentMessage], None]


class Hostile:
    """honest: nodes whose names are worth stealing."""

    def __init__(self, seed: int, honest: list[str], start_unix_ns: int) -> None:
        self._random = random.Random(seed)
        self._honest = honest
        self._epochs = count()
        sampler = Sampler(keyframe_every=20)
        keys = [
            series(
                f"metric_{number // 4}", "watts", Kind.COUNTER if number % 4 else Kind.GAUGE, ("gpu", str(number % 4))
            )
            for number in range(SERIES)
        ]
        self._dictionary = dictionary_message(keys, 0, SERIES)
        self._packed = zlib.compress(self._dictionary.SerializeToString())
        self._with_sets = packed(self._dictionary, label_sets=True)
        self._blocks = []
        for tick in range(TICKS):
            readings = [known(key, float(self._random.randrange(1000 * (tick + 1)))) for key in keys]
            made = sampler.tick(readings, start_unix_ns + tick)
            self._blocks.append(pb.Block.FromString(made.message))

    def stream(self) -> list[bytes]:
        """The messages of one stream, serialized; the collector may end it before the last."""
        chance = self._random.random()
        if chance < 0.02:
            return [self._random.randbytes(self._random.randrange(200)) for _ in range(4)]
        messages = [pb.AgentMessage(hello=self._hello())] if chance < 0.97 else []
        if chance < 0.94:
            told = self._random.choice([pb.Dictionary(packed=self._packed), self._with_sets])
            messages.append(pb.AgentMessage(dictionary=told))
        begin = 0 if self._random.random() < 0.9 else self._random.randrange(TICKS)
        messages += [
            pb.AgentMessage(block=block) for block in self._blocks[begin : begin + self._random.randrange(8, TICKS)]
        ]
        for _ in range(self._random.randrange(4)):
            at = self._random.randrange(len(messages) + 1)
            messages.insert(at, self._random.choice(_OTHERS)(self))
        self._disturb(messages)
        data = [message.SerializeToString() for message in messages]
        if self._random.random() < 0.2:
            at = self._random.randrange(len(data))
            data[at] = self._damaged(data[at])
        return data

    def _hello(self) -> pb.AgentHello:
        stolen = self._random.random() < 0.02
        node = self._random.choice(self._honest) if stolen else f"nodes/hostile-{self._random.randrange(NODES)}"
        return pb.AgentHello(
            node=node,
            boot_id="boot",
            epoch=f"epoch-{next(self._epochs)}",
            features=self._random.choice([[], [pb.AgentHello.DELTAS, pb.AgentHello.BACKLOG], [7]]),
        )

    def _disturb(self, messages: list[pb.AgentMessage]) -> None:
        """Blocks again, in another order or missing; and up to three messages with something wrong in them."""
        for _ in range(self._random.randrange(3)):
            at, to = (self._random.randrange(2, max(3, len(messages))) for _ in range(2))
            match self._random.randrange(3):
                case 0:
                    messages.insert(to, messages[min(at, len(messages) - 1)])
                case 1 if at < len(messages):
                    del messages[at]
                case _ if max(at, to) < len(messages):
                    messages[at], messages[to] = messages[to], messages[at]
        for _ in range(self._random.randrange(4)):
            at = self._random.randrange(len(messages))
            copy = pb.AgentMessage()
            copy.CopyFrom(messages[at])
            if copy.HasField("block"):
                self._random.choice(_BLOCKS)(self, copy)
            elif copy.HasField("hello"):
                self._random.choice(_HELLOS)(self, copy)
            messages[at] = copy

    def _damaged(self, data: bytes) -> bytes:
        """Bits that flipped, bytes that are missing or came twice."""
        damaged = bytearray(data)
        for _ in range(self._random.randrange(1, 4)):
            if not damaged:
                break
            at = self._random.randrange(len(damaged))
            match self._random.randrange(3):
                case 0:
                    damaged[at] ^= 1 << self._random.randrange(8)
                case 1:
                    del damaged[at : at + self._random.randrange(1, 9)]
                case _:
                    damaged[at:at] = damaged[at : at + 16]
        return bytes(damaged)

    def _text(self) -> str:
        return _LONG if self._random.random() < 0.002 else self._random.choice(_TEXTS)

    def dictionary(self) -> pb.AgentMessage:
        rare = self._random.random() < 0.05
        whole = self._packed
        series = [pb.Series(id=self._random.choice(_UINT32), metric=self._text(), unit=self._text())]
        labels = pb.Series(
            metric="m", labels={f"{number}": self._text() for number in range(self._random.randrange(40))}
        )
        chosen = [
            pb.Dictionary(packed=_bomb(64 << 20 if rare else 5 << 20)),
            pb.Dictionary(packed=whole[: self._random.randrange(len(whole))]),
            pb.Dictionary(packed=whole + b"more"),
            pb.Dictionary(packed=zlib.compress(self._damaged(zlib.decompress(whole)), 1)),
            pb.Dictionary(packed=zlib.compress(self._random.randbytes(64))),
            pb.Dictionary(series=series),
            pb.Dictionary(series=[labels]),
            self._with_sets,
            pb.Dictionary(packed=self._with_sets.packed, label_sets=[pb.LabelSet(labels=labels.labels)]),
            pb.Dictionary(packed=whole, label_sets=self._with_sets.label_sets),
            pb.Dictionary(packed=_bomb(5 << 20), label_sets=self._with_sets.label_sets),
            pb.Dictionary(
                series=[pb.Series(metric=self._text(), label_set=self._random.choice(_UINT32))],
                label_sets=[pb.LabelSet()] * (5000 if rare else 1),
            ),
            pb.Dictionary(series=[pb.Series(id=number, metric="m") for number in range(SERIES, 4200 if rare else 100)]),
            self._dictionary,
        ]
        return pb.AgentMessage(dictionary=self._random.choice(chosen))

    def event(self) -> pb.AgentMessage:
        event = pb.Event(
            boot_id=self._random.choice(["boot", self._text()]),
            source=self._random.choice(["kernel_log", self._text()]),
            sequence=self._random.choice([*_UINT64, self._random.randrange(1, 2**40)]),
            time_unix_ns=self._random.choice(_INT64),
            kind=self._random.choice(["XID", "NOBODY_KNOWS", self._text()]),
            gpu=self._random.choice([-(2**31), -1, 0, 7, 2**31 - 1]),
            code=self._random.choice([-(2**31), 0, 79, 2**31 - 1]),
            text=self._text(),
            pci=self._random.choice(["0000:01:00", self._text()]),
            detail={f"{number}": self._text() for number in range(self._random.choice([0, 1, 40]))},
        )
        return pb.AgentMessage(event=event)

    def associations(self) -> pb.AgentMessage:
        found = pb.Association(gpu=self._random.choice([-1, 0, 2**31 - 1]), job=self._text(), pod=self._text())
        found.pids.extend(range(self._random.choice([0, 64, 65])))
        times = self._random.choice([1, 1, 1, 1, 1024, 1025])
        return pb.AgentMessage(associations=pb.Associations(associations=[found] * times))

    def backlog(self) -> pb.AgentMessage:
        begin = self._random.choice([0, 20, 7])
        blocks = self._blocks[begin : begin + self._random.choice([0, 1, 20])] * self._random.choice([1, 1, 1, 4])
        return pb.AgentMessage(
            backlog=pb.Backlog(
                number=self._random.choice(_UINT64),
                epoch=self._random.choice(["x", self._text()]),
                dictionary=self._random.choice([pb.Dictionary(packed=self._packed), self._with_sets]),
                blocks=blocks,
                fresh_from=self._random.choice(_UINT64),
                lost=self._random.choice(_UINT64),
                last=self._random.random() < 0.5,
            )
        )

    def large(self) -> pb.AgentMessage:
        """More than a message may have, or just as much."""
        size = self._random.choice([(4 << 20) - 64, (4 << 20) + 1, 5 << 20]) if self._random.random() < 0.05 else 20_000
        return pb.AgentMessage(block=pb.Block(sequence=1, keyframe=True, values_f64=bytes(size // 8 * 8)))

    def again(self) -> pb.AgentMessage:
        return self._random.choice([pb.AgentMessage(hello=self._hello()), pb.AgentMessage()])

    def of_time(self, message: pb.AgentMessage) -> None:
        message.block.time_unix_ns = self._random.choice(_INT64)

    def of_sequence(self, message: pb.AgentMessage) -> None:
        message.block.sequence = self._random.choice(_UINT64)

    def of_deltas(self, message: pb.AgentMessage) -> None:
        for at in range(len(message.block.deltas)):
            message.block.deltas[at] = self._random.choice(_INT64)

    def of_more_deltas(self, message: pb.AgentMessage) -> None:
        message.block.deltas.extend(self._random.choices(_INT64, k=self._random.choice([1, 1, 500])))

    def of_fewer_deltas(self, message: pb.AgentMessage) -> None:
        del message.block.deltas[self._random.randrange(len(message.block.deltas) + 1) :]

    def of_changed(self, message: pb.AgentMessage) -> None:
        message.block.changed = self._random.randbytes(self._random.choice([0, 1, 5, 6, 6, 1000]))

    def of_classes(self, message: pb.AgentMessage) -> None:
        message.block.keyframe = self._random.random() < 0.7
        message.block.classes = self._random.randbytes(self._random.choice([0, SERIES, SERIES + 1, 1000]))

    def of_reclassed(self, message: pb.AgentMessage) -> None:
        message.block.reclassed.extend(
            self._random.choice(_UINT32) & 0xFFFFFF00 | self._random.randrange(32)
            for _ in range(self._random.choice([1, 3, 100]))
        )

    def of_plain(self, message: pb.AgentMessage) -> None:
        ids = [self._random.randrange(SERIES) for _ in range(self._random.randrange(SERIES))]
        values = self._random.choices(_FLOATS, k=len(ids))
        message.block.CopyFrom(
            pb.Block(
                time_unix_ns=message.block.time_unix_ns,
                sequence=message.block.sequence,
                keyframe=self._random.random() < 0.5,
                series_ids=struct.pack(f"<{len(ids)}I", *ids),
                values_f64=struct.pack(f"<{len(values)}d", *values),
            )
        )

    def of_values(self, message: pb.AgentMessage) -> None:
        message.block.values_f64 = self._random.randbytes(self._random.choice([7, 8, 800, 8000]))

    def of_ids(self, message: pb.AgentMessage) -> None:
        message.block.series_ids = struct.pack("<I", self._random.choice(_UINT32)) + self._random.randbytes(
            self._random.choice([0, 1, 4])
        )

    def of_unknown(self, message: pb.AgentMessage) -> None:
        message.block.unknown.extend(
            pb.UnknownSeries(id=self._random.choice([0, 1, 2, self._random.choice(_UINT32)]), reason=self._text())
            for _ in range(self._random.choice([1, 3, 30]))
        )

    def of_node(self, message: pb.AgentMessage) -> None:
        message.hello.node = self._random.choice(["nodes/UPPER", "jobs/j", f"nodes/{'a' * 500}", self._text()])

    def of_epoch(self, message: pb.AgentMessage) -> None:
        message.hello.epoch = self._text()


@cache
def _bomb(size: int) -> bytes:
    return zlib.compress(bytes(size), 9)


_OTHERS = (
    Hostile.dictionary,
    Hostile.event,
    Hostile.event,
    Hostile.associations,
    Hostile.backlog,
    Hostile.backlog,
    Hostile.large,
    Hostile.again,
)
_BLOCKS: tuple[Mutation, ...] = (
    Hostile.of_time,
    Hostile.of_sequence,
    Hostile.of_deltas,
    Hostile.of_more_deltas,
    Hostile.of_fewer_deltas,
    Hostile.of_changed,
    Hostile.of_classes,
    Hostile.of_reclassed,
    Hostile.of_plain,
    Hostile.of_values,
    Hostile.of_ids,
    Hostile.of_unknown,
)
_HELLOS: tuple[Mutation, ...] = (Hostile.of_node, Hostile.of_epoch)
