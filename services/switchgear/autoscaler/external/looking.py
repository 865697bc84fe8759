"""Looks at a service's replicas: each page by itself, or all in one answer of a Prometheus server; and at what is in front of them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol
from urllib.parse import urlsplit

from switchgear.autoscaler.adapters import scrape
from switchgear.autoscaler.adapters.fetch import Fetcher, FetchFailed
from switchgear.autoscaler.adapters.model import Quantity
from switchgear.autoscaler.adapters.page import BYTES_MAX, PageUnusable
from switchgear.autoscaler.adapters.scrape import Reading
from switchgear.autoscaler.external import prometheus
from switchgear.autoscaler.external.discovery import Discovery, ListUnknown, discovery_of
from switchgear.autoscaler.external.presence import Look, NoPage
from switchgear.autoscaler.external.settings import Prometheus, Service


class Looker(Protocol):
    async def look(self, unix_s: float) -> Look:
        """unix_s: wall time now, which Prometheus' samples have."""
        ...


def looker_of(service: Service, fetcher: Fetcher, interval_s: float) -> Looker:
    """As the service's configuration says."""
    pages = Pages(fetcher, service.engine)
    looker: Looker = (
        Scraped(discovery_of(service), pages)
        if service.prometheus is None
        else Queried(service.prometheus, pages, interval_s)
    )
    return (
        looker
        if service.gateway is None
        else Fronted(looker, Gateway(fetcher, service.gateway, service.gateway_labels))
    )


class Pages:
    """Fetches and reads single pages of an engine; "": whichever it is."""

    def __init__(self, fetcher: Fetcher, engine: str) -> None:
        self.fetcher, self.engine = fetcher, engine

    async def page(self, url: str) -> Reading | NoPage:
        try:
            return self.read(await self.fetcher.fetch(url))
        except FetchFailed as failed:
            return NoPage(failed.why, off=failed.outcome == "refused")

    def read(self, text: str) -> Reading | NoPage:
        try:
            return scrape.read(text, self.engine)
        except PageUnusable as unusable:
            return NoPage(str(unusable))


class Scraped:
    """Asks each replica. While the list is not known, those of the list before are asked."""

    def __init__(self, discovery: Discovery, pages: Pages) -> None:
        self._discovery, self._pages = discovery, pages
        self._urls: tuple[str, ...] = ()

    async def look(self, unix_s: float) -> Look:  # noqa: ARG002 - the protocol's
        trouble = ""
        try:
            self._urls = await self._discovery.urls()
        except ListUnknown as unknown:
            trouble = str(unknown)
        found = await asyncio.gather(*(self._pages.page(url) for url in self._urls))
        named = {_name(url): one for url, one in zip(self._urls, found, strict=True)}
        return Look(named, certain=self._discovery.certain, trouble=trouble)


class Queried:
    """Asks Prometheus for what it scraped last."""

    def __init__(self, server: Prometheus, pages: Pages, interval_s: float) -> None:
        self._server, self._pages, self._interval_s = server, pages, interval_s
        self._url = prometheus.query_url(server, scrape.names_of(pages.engine), interval_s)
        self._found: dict[str, Reading | NoPage] = {}

    async def look(self, unix_s: float) -> Look:
        try:
            text = await self._pages.fetcher.fetch(self._url)
            told = prometheus.told(text, self._server.replica_label)
        except (FetchFailed, prometheus.AnswerUnusable) as error:
            if isinstance(error, FetchFailed) and error.outcome == "too_large":
                why = f"its answer has more than {BYTES_MAX} bytes, as for some 250 replicas of vLLM; find these with dns or endpoints_file"
            else:
                why = str(error)
            lost = NoPage(f"{_name(self._server.url)} does not tell: {why}")
            return Look(dict.fromkeys(self._found, lost), trouble=lost.why)
        self._found = self._of(told, unix_s)
        return Look(self._found)

    def _of(self, told: Mapping[str, prometheus.Told], unix_s: float) -> dict[str, Reading | NoPage]:
        found: dict[str, Reading | NoPage] = {}
        for replica, one in told.items():
            age_s = unix_s - one.unix_s
            if age_s > prometheus.STALE_INTERVALS * self._interval_s:
                # Of a target that Prometheus still has, `up` would be newer.
                if one.up is None:
                    found[replica] = NoPage(f"Prometheus has nothing of it that is newer than {age_s:.0f} s")
            elif one.up is False:
                found[replica] = NoPage("Prometheus cannot scrape it")
            else:
                found[replica] = self._pages.read(one.page)
        return found


class Gateway(Pages):
    """The page of what stands in front of the replicas, without the series of other services. labels: of this service's series."""

    def __init__(self, fetcher: Fetcher, url: str, labels: Mapping[str, str]) -> None:
        super().__init__(fetcher, "")
        self.url = url
        self._names = tuple(labels)
        self._labels = [
            (
                re.compile(rf'[{{,]\s*{re.escape(name)}="'),
                re.compile(rf'[{{,]\s*{re.escape(name)}="{re.escape(value)}"'),
            )
            for name, value in labels.items()
        ]

    def read(self, text: str) -> Reading | NoPage:
        found = super().read("".join(line for line in text.splitlines(keepends=True) if self._is_ours(line)))
        if isinstance(found, Reading) and Quantity.WAITING in found.found:
            for name, (theirs, _) in zip(self._names, self._labels, strict=True):
                if theirs.search(text) is None:
                    return NoPage(f"none of its series has the label {name!r}; correct gateway_labels")
        return found

    def _is_ours(self, line: str) -> bool:
        """A series without such a label tells of the gateway itself."""
        return all(ours.search(line) or not theirs.search(line) for theirs, ours in self._labels)


class Fronted:
    """Adds what stands in front of the replicas."""

    def __init__(self, looker: Looker, gateway: Gateway) -> None:
        self._looker, self._gateway = looker, gateway

    async def look(self, unix_s: float) -> Look:
        found, front = await asyncio.gather(self._looker.look(unix_s), self._gateway.page(self._gateway.url))
        return replace(found, gateway=front)


def _name(url: str) -> str:
    """What is said of a replica: no credentials, and of the path only what is not usual."""
    parts = urlsplit(url)
    query = f"?{parts.query}" if parts.query else ""
    return f"{parts.netloc.rpartition('@')[2]}{parts.path.removesuffix('/metrics')}{query}"
