"""GPUs in Slurm's words for generic resources: what nodes have (`Gres=`), what is in use, and what jobs ask for.

Forms of all versions: `gpu:8`, `gpu:h100:8(S:0-1)`, `gpu:h100:3(IDX:0-2)`, `gpu:(null):2(IDX:0,5)`, `gres:gpu:3`, `gres/gpu:h100=4`
(gres.conf(5); scontrol(1), `show node`; sbatch(1), `--gres`).
"""

from __future__ import annotations

import functools
import re

from switchgear.core.errors import Invalid
from switchgear.slurm.hostlist import expand
from switchgear.slurm.model import Gpus

_GPU = re.compile(
    r"(?:^|,)\s*(?:gres[:/])?gpu(?:[:/](?P<type>\(null\)|[A-Za-z_][^:=,()]*))?(?:[:=](?P<count>\d+)(?P<thousands>[kK]?))?"
    r"(?P<notes>(?:\([^()]*\))*)(?=,|$)"
)
_INDICES = re.compile(r"\(IDX:([\d,-]+)\)")


# A cluster has few forms of nodes and jobs, and each is seen again at every look.
@functools.lru_cache(maxsize=4096)
def gpus(text: str | None) -> Gpus:
    """The GPUs among these resources; none where the text speaks of none."""
    by_type: dict[str, int] = {}
    indices: list[int] | None = []
    for found in _GPU.finditer(text or ""):
        kind = found["type"] or ""
        number = int(found["count"] or 1) * (1024 if found["thousands"] else 1)
        if number:
            by_type["" if kind == "(null)" else kind] = number
        told = _INDICES.search(found["notes"])
        if told is None and number:
            indices = None
        elif told is not None and indices is not None:
            indices += _numbers(told[1])
    if len(by_type) > 1 and "=" in (text or ""):
        by_type.pop("", None)  # TRES count each type and, once more, all together
    if indices is not None and len(indices) != sum(by_type.values()):
        indices = None
    return Gpus(by_type, None if indices is None else tuple(sorted(indices)))


def _numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in expand(f"[{text}]")]
    except Invalid:
        return []
