"""Sections of the collector's configuration that say what comes in beside its agents."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from switchgear.collector.settings import Section
from switchgear.core.urls import check_url

#: What a series needs to be taken in: one of these matches the whole name of its metric; none: all are.
Metrics = tuple[re.Pattern[str], ...]


class OtlpImport(Section):
    """`[otlp_import]`: metrics by OTLP/gRPC, on the collector's own address.

    node_attributes: attributes of the resource of which the first that is there names the node. nodes_max: what comes of more nodes
    is refused. metrics: see `Metrics`.
    """

    enabled: bool = False
    node_attributes: Annotated[tuple[str, ...], Field(min_length=1, max_length=16)] = (
        "host.name",
        "k8s.node.name",
        "service.instance.id",
    )
    nodes_max: Annotated[int, Field(ge=1, le=100_000)] = 10_000
    metrics: Metrics = ()


class Scrape(Section):
    """One `[[scrape]]`: pages in Prometheus' format, fetched each `interval_s`.

    name: of the source, `scrape/{name}`. url: of one page. targets_file: of many, in the format of Prometheus' file_sd; it is read again
    when it changes. node: whose page it is. node_label: a label of the series that names the node; it goes before `node`. With
    neither, the target's label `node`, else the host of its URL.
    timeout_s: of one fetch, first to last byte. bearer_token_file: read for each fetch. ca_file: of the target's certificate.
    metrics: see `Metrics`.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]
    url: str = ""
    targets_file: Path | None = None
    node: str = ""
    node_label: str = ""
    interval_s: Annotated[float, Field(ge=0.1, le=3600)] = 15.0
    timeout_s: Annotated[float, Field(ge=0.1, le=3600)] = 10.0
    bearer_token_file: Path | None = None
    ca_file: Path | None = None
    metrics: Metrics = ()

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if bool(self.url) == bool(self.targets_file):
            raise ValueError("give either url or targets_file")
        if self.url:
            check_url(self.url)
        if self.node and self.targets_file:
            raise ValueError("node is of one url; in a targets_file give each target the label `node`")
        if self.timeout_s > self.interval_s:
            raise ValueError("timeout_s must be at most interval_s")
        return self


def chosen(metrics: Metrics, name: str) -> bool:
    """Whether a series of the metric `name` is taken in."""
    return not metrics or any(pattern.fullmatch(name) for pattern in metrics)


def _check_names(scrapes: tuple[Scrape, ...]) -> tuple[Scrape, ...]:
    names = [scrape.name for scrape in scrapes]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two are named {min(twice)!r}, and their series would be taken for one another's")
    return scrapes


#: `[[scrape]]`; each has a name of its own.
Scrapes = Annotated[tuple[Scrape, ...], Field(max_length=100), AfterValidator(_check_names)]
