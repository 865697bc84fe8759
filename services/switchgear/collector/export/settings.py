"""Where the collector sends samples to: `[[remote_write]]` and `[[otlp_export]]` of its configuration file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from switchgear.collector.settings import Section

#: Each target costs CPU and a queue.
TARGETS_MAX = 16
#: A token, in the words of RFC 9110.
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADERS_OF_OURS = frozenset(
    {"authorization", "content-type", "content-encoding", "content-length", "host", "user-agent"}
)


def _url(value: str) -> str:
    if not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError("must be printable ASCII without spaces; write other characters as %XX")
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("must begin with http://HOST or https://HOST")
    try:
        _ = parts.port
    except ValueError:
        raise ValueError("must have a port from 0 to 65535, if any") from None
    if parts.username or parts.password:
        raise ValueError("must have no user or password in it; give basic_auth with a password_file")
    return value


def _expression(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from None
    return value


def _headers(value: Mapping[str, str]) -> Mapping[str, str]:
    if wrong := sorted(name for name in value if name.lower() in _HEADERS_OF_OURS):
        raise ValueError(
            f"{', '.join(wrong)} cannot be given here; for credentials there are basic_auth and bearer_token_file"
        )
    if wrong := sorted(name for name in value if not _HEADER.fullmatch(name)):
        raise ValueError(
            f"{', '.join(map(repr, wrong))} cannot be the name of a header; write letters, digits and dashes"
        )
    return value


def _header_values(value: Mapping[str, str]) -> Mapping[str, str]:
    if wrong := sorted(name for name, text in value.items() if not (text.isascii() and text.isprintable())):
        raise ValueError(f"{', '.join(wrong)} must be one line of printable ASCII")
    return value


Url = Annotated[str, AfterValidator(_url)]
Expression = Annotated[str, AfterValidator(_expression)]
Headers = Annotated[Mapping[str, str], AfterValidator(_headers), AfterValidator(_header_values)]


class BasicAuth(Section):
    """password_file: read at each request, without the white space around."""

    username: str
    password_file: Path


class Receiver(Section):
    """What all that requests go to have.

    name: in metrics and logs.
    headers: sent as they are. headers_files: header to the file that has its value. bearer_token_file: likewise for a token.
    Files with secrets are read at each request, so a new one needs no restart.
    ca_file, cert_file, key_file: PEM; whom we trust instead of the system's authorities, and who we are.
    timeout_s: of a request. connections: requests at a time.
    """

    name: str = Field("", max_length=64)
    headers: Headers = Field(default_factory=dict)
    headers_files: Annotated[Mapping[str, Path], AfterValidator(_headers)] = Field(default_factory=dict)
    basic_auth: BasicAuth | None = None
    bearer_token_file: Path | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    timeout_s: float = Field(30.0, gt=0, le=300)
    connections: int = Field(4, ge=1, le=64)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.basic_auth is not None and self.bearer_token_file is not None:
            raise ValueError("give basic_auth or bearer_token_file, not both")
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file belong together")
        return self


class Target(Receiver):
    """Of samples.

    url: where requests go. name: HOST:PORT of the url when left out.
    interval_s: one row of a node in so many seconds; 0: each, as agents send them. 15 is what scrapes have.
    keep, drop: regular expressions of whole names of metrics; keep: only these; drop: not these.
    queue_bytes_max: of samples that wait, 8 bytes each; beyond it the oldest are dropped. The default holds
    8 million: of 1,000 nodes with 320 series at an interval of 15 s, six minutes.
    samples_max: in a request. connections: a node's samples always take the same, so their order holds.
    """

    url: Url
    interval_s: float = Field(15.0, ge=0, le=3600)
    keep: Expression = ""
    drop: Expression = ""
    queue_bytes_max: int = Field(64 * 1024**2, ge=1024**2)
    samples_max: int = Field(20_000, ge=500, le=100_000)

    @property
    def label(self) -> str:
        """Who it is in metrics and logs."""
        return self.name or urlsplit(self.url).netloc


class RemoteWrite(Target):
    """A Prometheus-compatible store.

    protocol: of remote write; 2.0 needs a store that takes it, and its requests take longer to make: give it a smaller samples_max
    when the collector has thousands of nodes. external_labels: on all series, beside `node`, `instance` and `job`
    or instead of them; an empty value removes one of these.
    """

    protocol: Literal["1.0", "2.0"] = "1.0"
    # Those with two underscores in front are Prometheus' own: `__name__` would rename all series.
    external_labels: Mapping[Annotated[str, Field(pattern="^(?:_?[a-zA-Z][a-zA-Z0-9_]*|_)$")], str] = Field(
        default_factory=dict
    )


class OtlpExport(Target):
    """A receiver of OpenTelemetry's metrics.

    protocol: with "grpc" the url has no path (http://HOST:4317; https with TLS), with "http" it has all of it (…/v1/metrics).
    resource_attributes: on all resources, beside `host.name` and `service.name` or instead of them. compression: of requests.
    """

    protocol: Literal["grpc", "http"] = "grpc"
    resource_attributes: Mapping[str, str] = Field(default_factory=dict)
    compression: Literal["none", "gzip"] = "none"
    # Of some 200 bytes each, where receivers over gRPC take 4 MiB.
    samples_max: int = Field(5_000, ge=500, le=100_000)

    @model_validator(mode="after")
    def _path_fits(self) -> Self:
        has_path = urlsplit(self.url).path.strip("/") != ""
        if has_path and self.protocol == "grpc":
            raise ValueError('a url for gRPC has no path; take it away, or add protocol = "http"')
        if not has_path and self.protocol == "http":
            raise ValueError("a url for HTTP needs its path, most often /v1/metrics")
        return self


_T = TypeVar("_T", bound=Target)


def _names_differ(targets: tuple[_T, ...]) -> tuple[_T, ...]:
    labels = [target.label for target in targets]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise ValueError(f"{', '.join(twice)} is there twice; give each a name of its own")
    return targets


RemoteWrites = Annotated[tuple[RemoteWrite, ...], Field(max_length=TARGETS_MAX), AfterValidator(_names_differ)]
OtlpExports = Annotated[tuple[OtlpExport, ...], Field(max_length=TARGETS_MAX), AfterValidator(_names_differ)]
