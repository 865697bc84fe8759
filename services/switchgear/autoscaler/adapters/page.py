"""Pages in Prometheus' text format or OpenMetrics, to the samples that somebody wants of them. Pure.

prometheus_client's parser takes 80 µs for a line with eight labels. A page of vLLM has a thousand lines, of which a tenth is wanted, and
what names a series is the same in each scrape and on each replica: the parser sees only that, and only once.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from prometheus_client.parser import text_string_to_metric_families

#: Of one page. vLLM's has 0.2 MB, a Ray node with a hundred deployments 5 MB.
BYTES_MAX = 16 * 1024 * 1024
#: Wanted samples of one page; a server with more data-parallel engines than that is no single replica.
SAMPLES_MAX = 20_000
#: Of a line that is wanted: vLLM's longest has 800 characters.
_LINE_LENGTH_MAX = 4096
#: Names of series that are kept apart: a hundred replicas whose labels all differ.
_KNOWN_MAX = 65_536
_SUFFIXES = ("_bucket", "_sum", "_count", "_total")
_LINE = re.compile(
    r"""((?:[a-zA-Z_:][a-zA-Z0-9_:]*+)(?:[ \t]*+\{(?:[^"}]|"(?:[^"\\]|\\.)*+")*+\})?)  # what names the series
    [ \t]++(\S++)                                                                    # its value
    (?:[ \t]+(-?[0-9.eE+]++))?[ \t]*+(?:\#.*)?""",  # time, and exemplar, which is not used
    re.VERBOSE,
)
Labels = Mapping[str, str]


class PageUnusable(ValueError):
    """There is no telling what the server says. The message says why, and what may help."""


class ServerUnknown(PageUnusable):
    """It is a page of metrics, and of no inference server that the table has."""


@dataclass(slots=True)
class Page:
    """samples: name -> labels and value of each, in the order of the page. types, units: as the page tells them, by family.

    rejected: lines that were not taken, by reason. stamp_s: the newest time that a sample has, as written; None: none has one.
    """

    samples: dict[str, list[tuple[Labels, float]]] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    rejected: Counter[str] = field(default_factory=Counter)
    stamp_s: float | None = None

    def told(self, of: Mapping[str, str], name: str) -> str:
        """What the page tells in `of` (types or units) of the family that a sample of this name belongs to; empty: nothing."""
        names = [name, *(name.removesuffix(end) for end in _SUFFIXES if name.endswith(end)), f"{name}_total"]
        return next((of[one] for one in names if one in of), "")


def take(text: str, wanted: Collection[str]) -> Page:
    """The samples whose names are wanted.

    Raises PageUnusable for what is no page of metrics: too large, cut, HTML, JSON, or of another format.
    """
    if len(text) > BYTES_MAX:
        raise PageUnusable(f"the page has more than {BYTES_MAX} characters; no inference server's has")
    _refuse_others(text)
    page, seen = Page(), set[str]()
    for line in text.split("\n"):
        if not line or line[0] == "#":
            _note(line, page)
            continue
        end = line.find("{")
        name = line[: end if end >= 0 else None].split(None, 1)[0:1]
        if name and name[0] in wanted:
            _add(page, line, seen)
    return page


def _refuse_others(text: str) -> None:
    start = text[:200].lstrip("\ufeff \t\r\n").lower()
    if start.startswith("<"):
        raise PageUnusable("it is a web page (HTML), not metrics: another port or path has them")
    if start.startswith(("{", "[")):
        raise PageUnusable("it is JSON, not Prometheus' text format; trtllm-serve has that under /prometheus/metrics")
    if start.startswith('"# '):
        raise PageUnusable(
            "it is the page as one quoted string, as some builds of llama.cpp have it (issue 17384): update it"
        )
    if start and not text.endswith(("\n", "\n# EOF")):  # OpenMetrics may leave out the last end of line
        raise PageUnusable("it is cut: the last line has no end, so its number may be a part of one")
    if (
        start
        and not start.startswith("#")
        and _LINE.fullmatch(text.lstrip("\ufeff \t\r\n").partition("\n")[0].strip()) is None
    ):
        raise PageUnusable("its first line is no metric in Prometheus' text format")


def _note(line: str, page: Page) -> None:
    if not line.startswith(("# TYPE ", "# UNIT ", "# HELP ")):
        return
    words = line.split(None, 3)
    if len(words) < 4:
        return
    if words[1] == "TYPE":
        page.types[words[2]] = words[3].strip()
    elif words[1] == "UNIT":
        page.units[words[2]] = words[3].strip()
    elif "with unit: " in words[3]:  # as TorchServe tells it
        page.units[words[2]] = words[3].rpartition("with unit: ")[2].strip().lower()


def _add(page: Page, line: str, seen: set[str]) -> None:
    match = _LINE.fullmatch(line.strip()) if len(line) <= _LINE_LENGTH_MAX else None
    known = _series(match[1]) if match else None
    if match is None or known is None:
        page.rejected["malformed"] += 1
        return
    try:
        value = float(match[2])
        stamp_s = float(match[3]) if match[3] else None
    except ValueError:
        page.rejected["malformed"] += 1
        return
    if stamp_s is not None:
        page.stamp_s = max(stamp_s, page.stamp_s or stamp_s)
    name, labels = known
    samples = page.samples.setdefault(name, [])
    if match[1] in seen:
        page.rejected["duplicate"] += 1
        samples[:] = [one for one in samples if one[0] != labels]
    elif len(seen) >= SAMPLES_MAX:
        raise PageUnusable(f"it has more than {SAMPLES_MAX} series of the inference server; scrape replicas one by one")
    seen.add(match[1])
    samples.append((labels, value))


@lru_cache(_KNOWN_MAX)
def _series(text: str) -> tuple[str, Labels] | None:
    try:
        (family,) = text_string_to_metric_families(f"{text} 0\n")
        (sample,) = family.samples
    except ValueError:
        return None
    return sample.name, sample.labels
