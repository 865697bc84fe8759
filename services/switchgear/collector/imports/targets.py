"""Which pages a `[[scrape]]` fetches: its one URL, or those of a file as Prometheus' file_sd has it."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from switchgear.collector.imports.keys import node_of
from switchgear.collector.imports.settings import Scrape
from switchgear.core.errors import Invalid, Reason
from switchgear.core.urls import check_url

log = logging.getLogger(__name__)

TARGETS_MAX = 10_000
FILE_BYTES_MAX = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Target:
    """node: `nodes/{node}` of which its page tells; "" when only the label of each series says that."""

    url: str
    node: str


class _Group(BaseModel):
    targets: Annotated[list[str], Field(max_length=TARGETS_MAX)]
    labels: dict[str, str] = {}


_GROUPS = TypeAdapter(list[_Group])


def targets_of(scrape: Scrape) -> frozenset[Target]:
    """Raises Invalid when the file cannot be read or is not as it should be."""
    if scrape.targets_file is None:
        return frozenset({_target(scrape, scrape.url, scrape.node)})
    try:
        with scrape.targets_file.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
        if len(data) > FILE_BYTES_MAX:
            raise _invalid(scrape.targets_file, f"has more than {FILE_BYTES_MAX} bytes")
        groups = _GROUPS.validate_python(json.loads(data))
        found = frozenset(_of_group(scrape, address, group) for group in groups for address in group.targets)
    except OSError as error:
        raise _invalid(scrape.targets_file, f"cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise _invalid(scrape.targets_file, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except ValueError as error:  # also of JSON and of a URL
        raise _invalid(scrape.targets_file, str(error)) from error
    if len(found) > TARGETS_MAX:
        raise _invalid(scrape.targets_file, f"has more than {TARGETS_MAX} targets")
    return found


class Targets:
    """The targets of one `[[scrape]]` as they are now."""

    def __init__(self, scrape: Scrape) -> None:
        self._scrape = scrape
        self._targets: frozenset[Target] = frozenset()
        self._stamp: tuple[int, ...] | None = None
        self._problem = ""

    def look(self) -> frozenset[Target]:
        """Reads the file again when it has changed. While it cannot be read the targets stay as they were; the log says so once."""
        stamp = self._stamp_now()
        if stamp is None or stamp != self._stamp:
            self._stamp = stamp
            try:
                self._targets = targets_of(self._scrape)
                self._problem = ""
            except Invalid as error:
                if error.message != self._problem:
                    log.error("%s; %d targets are scraped as before", error.message, len(self._targets))
                self._problem = error.message
        return self._targets

    def _stamp_now(self) -> tuple[int, ...] | None:
        if self._scrape.targets_file is None:
            return ()
        try:
            status = self._scrape.targets_file.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino, status.st_size


def _of_group(scrape: Scrape, address: str, group: _Group) -> Target:
    if "://" not in address:
        scheme, path = group.labels.get("__scheme__", "http"), group.labels.get("__metrics_path__", "/metrics")
        address = f"{scheme}://{address}{path}"
    return _target(scrape, address, group.labels.get("node", ""))


def _target(scrape: Scrape, url: str, node: str) -> Target:
    """Raises ValueError when a node is needed and nothing names it."""
    host = urlsplit(check_url(url)).hostname or ""
    named = node_of(node or ("" if scrape.node_label else host))
    if not named and (node or not scrape.node_label):
        raise ValueError(f"{url}: the node {node or host!r} has no letter or digit that a name may have")
    return Target(url, named)


def _invalid(path: Path, what: str) -> Invalid:
    return Invalid(f"the file of targets {path}: {what}", Reason.BAD_FIELD, file=str(path))
