"""The agent's values as messages of the telemetry wire."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from itertools import islice

from switchgear.agent.readings import Kind, SeriesKey
from switchgear.agent.spool import Event
from switchgear.v1alpha import telemetry_service_pb2 as pb

#: The collector refuses the stream of an agent that goes beyond these; the path of a mount may have 4096 characters.
NAME_CHARS_MAX = 256
DETAIL_MAX = 16

_KINDS = {Kind.GAUGE: pb.Series.GAUGE, Kind.COUNTER: pb.Series.COUNTER}


def dictionary_message(keys: Sequence[SeriesKey], begin: int, end: int) -> pb.Dictionary:
    """The series with the ids `begin` up to, not including, `end`."""
    return pb.Dictionary(
        series=[
            pb.Series(id=number, metric=key.metric, unit=key.unit, kind=_KINDS[key.kind], labels=_clipped(key.labels))
            for number, key in enumerate(keys[begin:end], begin)
        ]
    )


def packed(dictionary: pb.Dictionary, *, label_sets: bool) -> pb.Dictionary:
    """The same in a tenth of the bytes: names and labels repeat. label_sets: each set of labels is told once, beside the series."""
    if not dictionary.series:
        return dictionary
    sets = dict[tuple[tuple[str, str], ...], int]()
    if label_sets:
        dictionary = pb.Dictionary(
            series=[
                pb.Series(
                    id=one.id,
                    metric=one.metric,
                    unit=one.unit,
                    kind=one.kind,
                    label_set=sets.setdefault(tuple(sorted(one.labels.items())), len(sets) + 1),
                )
                for one in dictionary.series
            ]
        )
    return pb.Dictionary(
        packed=zlib.compress(dictionary.SerializeToString()),
        label_sets=[pb.LabelSet(labels=dict(labels)) for labels in sets],
    )


def event_message(event: Event) -> pb.Event:
    return pb.Event(
        boot_id=event.boot_id,
        source=event.source,
        sequence=event.sequence,
        time_unix_ns=event.time_unix_ns,
        kind=event.kind,
        gpu=event.gpu,
        code=event.code,
        text=event.text,
        simulated=event.simulated,
        pci=event.pci,
        detail=_clipped(islice(event.detail.items(), DETAIL_MAX)),
    )


def _clipped(texts: Iterable[tuple[str, str]]) -> dict[str, str]:
    return {name: text[:NAME_CHARS_MAX] for name, text in texts}
