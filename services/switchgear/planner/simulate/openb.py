"""Nodes and pods as lines of CSV with the columns of Alibaba's openb lists (2023)."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping

from switchgear.core.errors import Invalid, Reason
from switchgear.planner.model import WHOLE, Node, Task

#: GPUs of a node; each is a column of the fleet's arrays.
GPUS_MAX = 64
#: Of any other number: sums of them over a fleet stay exact.
_AMOUNT_MAX = 1 << 40


def nodes_of(lines: Iterable[str], source: str) -> tuple[Node, ...]:
    """Columns sn, cpu_milli, memory_mib, gpu, model. Raises Invalid with source and line when a value is missing or wrong."""
    found: dict[str, Node] = {}
    for at, row in _rows(lines, source, ("sn", "cpu_milli", "memory_mib", "gpu", "model")):
        name = row["sn"]
        if not name or name in found:
            raise _wrong(at, f"sn is {name!r}; give each node a name of its own")
        found[name] = Node(
            name,
            _number(row, "gpu", at, GPUS_MAX),
            row["model"],
            cpu_milli=_number(row, "cpu_milli", at),
            memory_mib=_number(row, "memory_mib", at),
        )
    if not any(node.gpus for node in found.values()):
        raise Invalid(f"{source} lists no node with GPUs", Reason.BAD_FIELD, file=source)
    return tuple(found.values())


def tasks_of(lines: Iterable[str], source: str) -> tuple[Task, ...]:
    """Columns cpu_milli, memory_mib, num_gpu, gpu_milli (of the GPU of a pod with one; empty: all of it) and, if there are any that are bound
    to GPU models, gpu_spec (`A10|V100M32`; empty: any). Equal tasks are one object. Raises Invalid as `nodes_of`.
    """
    distinct: dict[Task, Task] = {}
    found = []
    for at, row in _rows(lines, source, ("cpu_milli", "memory_mib", "num_gpu", "gpu_milli")):
        gpus = _number(row, "num_gpu", at, GPUS_MAX)
        milli = _number(row, "gpu_milli", at, WHOLE, empty=0) or WHOLE
        models = frozenset(filter(None, row.get("gpu_spec", "").split("|"))) if gpus else frozenset[str]()
        share = gpus == 1 and milli < WHOLE
        task = Task(
            gpus=0 if share else gpus,
            gpu_milli=milli if share else 0,
            cpu_milli=_number(row, "cpu_milli", at),
            memory_mib=_number(row, "memory_mib", at),
            gpu_models=models,
        )
        found.append(distinct.setdefault(task, task))
    if not any(task.gpu_share for task in found):
        raise Invalid(f"{source} lists no pod that asks for GPUs", Reason.BAD_FIELD, file=source)
    return tuple(found)


def _rows(lines: Iterable[str], source: str, columns: tuple[str, ...]) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Each with where it is, for a message."""
    reader = csv.DictReader(lines, restval="", restkey="")
    try:
        missing = [column for column in columns if column not in (reader.fieldnames or ())]
        if missing:
            raise Invalid(
                f"{source} has no column {', '.join(missing)}; its first line is to name {', '.join(columns)}",
                Reason.BAD_FIELD,
                file=source,
            )
        for row in reader:
            yield f"{source}, line {reader.line_num}", row
    except (csv.Error, UnicodeDecodeError) as error:
        raise _wrong(f"{source}, line {reader.line_num + 1}", f"this is no CSV: {error}") from error


def _number(row: Mapping[str, str], column: str, at: str, most: int = _AMOUNT_MAX, empty: int | None = None) -> int:
    text = row[column].strip()
    if not text and empty is not None:
        return empty
    if not text.isascii() or not text.isdigit() or len(text) > len(str(most)) or int(text) > most:
        raise _wrong(at, f"{column} is {text[:40]!r}; give a whole number from 0 to {most}")
    return int(text)


def _wrong(at: str, why: str) -> Invalid:
    return Invalid(f"{at}: {why}", Reason.BAD_FIELD, line=at)
