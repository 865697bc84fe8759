"""Where the metrics of a service's replicas are now: a list, a file of Prometheus' file_sd, or the addresses of a DNS name."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit, urlunsplit

from pydantic import BaseModel, TypeAdapter, ValidationError

from switchgear.autoscaler.external.settings import REPLICAS_MAX, Service
from switchgear.core.urls import check_url

FILE_BYTES_MAX = 16 * 1024 * 1024
_RESOLVE_TIMEOUT_S = 5.0


class ListUnknown(Exception):
    """Nobody can tell now which replicas there are; the message says why."""


class Discovery(Protocol):
    """certain: whether what is listed ought to answer. In a fixed list some may be off on purpose."""

    certain: bool

    async def urls(self) -> tuple[str, ...]:
        """Sorted, none twice. Raises ListUnknown."""
        ...


def discovery_of(service: Service) -> Discovery:
    """For a service whose replicas we ask ourselves."""
    if service.endpoints_file is not None:
        return Watched(service.endpoints_file)
    if service.dns is not None:
        return Resolved(service.dns)
    return Fixed(service.endpoints)


class Fixed:
    """The list of the configuration."""

    certain = False

    def __init__(self, urls: tuple[str, ...]) -> None:
        self._urls = tuple(sorted(set(urls)))

    async def urls(self) -> tuple[str, ...]:
        return self._urls


class _Group(BaseModel):
    targets: list[str]
    labels: dict[str, str] = {}


_GROUPS = TypeAdapter(list[_Group])


class Watched:
    """A file as Prometheus' file_sd has it, read again when it changes."""

    certain = True

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, ...] | None = None
        self._urls: tuple[str, ...] = ()

    async def urls(self) -> tuple[str, ...]:
        try:
            status = self._path.stat()
            stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
            if stamp != self._stamp:
                self._urls = _read(self._path)
                self._stamp = stamp
        except OSError as error:
            raise ListUnknown(f"the list of replicas {self._path} cannot be read: {error.strerror}") from error
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise ListUnknown(f"the list of replicas {self._path}: {where}: {first['msg']}") from error
        except ValueError as error:  # also of JSON
            raise ListUnknown(f"the list of replicas {self._path}: {error}") from error
        return self._urls


def _read(path: Path) -> tuple[str, ...]:
    with path.open("rb") as file:
        data = file.read(FILE_BYTES_MAX + 1)
    if len(data) > FILE_BYTES_MAX:
        raise ValueError(f"it has more than {FILE_BYTES_MAX} bytes")
    groups = _GROUPS.validate_python(json.loads(data))
    return _bounded({_of_group(address, group.labels) for group in groups for address in group.targets})


def _of_group(address: str, labels: dict[str, str]) -> str:
    if "://" not in address:
        address = f"{labels.get('__scheme__', 'http')}://{address}{labels.get('__metrics_path__', '/metrics')}"
    return check_url(address)


class Resolved:
    """Each address of the URL's host is a replica. A name without any address has none; a name server that does not answer says nothing.

    Where replicas have an address of each family, those of IPv4 are taken.
    """

    certain = True

    def __init__(self, url: str) -> None:
        self._url = url

    async def urls(self) -> tuple[str, ...]:
        parts = urlsplit(self._url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            async with asyncio.timeout(_RESOLVE_TIMEOUT_S):
                found = await asyncio.get_running_loop().getaddrinfo(
                    parts.hostname, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
                )
        except TimeoutError:
            raise ListUnknown(f"the name server has not answered for {parts.hostname}") from None
        except socket.gaierror as error:
            if error.errno in {socket.EAI_NODATA, socket.EAI_NONAME}:
                return ()
            raise ListUnknown(f"{parts.hostname} cannot be resolved: {error.strerror}") from error
        hosts = {str(address[0]) for family, *_, address in found if family == socket.AF_INET}
        hosts = hosts or {f"[{address[0]}]" for family, *_, address in found if family == socket.AF_INET6}
        return _bounded({urlunsplit((parts.scheme, f"{host}:{port}", parts.path, parts.query, "")) for host in hosts})


def _bounded(urls: set[str]) -> tuple[str, ...]:
    if len(urls) > REPLICAS_MAX:
        raise ListUnknown(f"{len(urls)} replicas are listed, and at most {REPLICAS_MAX} may be")
    return tuple(sorted(urls))
