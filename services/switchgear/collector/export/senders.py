"""Requests on their way: over HTTP and gRPC."""

from __future__ import annotations

import asyncio
import base64
import gzip
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import grpc
import grpc.aio
import httpx
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse

from switchgear.collector.export.answer import TEXT_CHARS_MAX, Answer, Verdict, of_http
from switchgear.collector.export.settings import OtlpExport, Receiver
from switchgear.collector.secret_file import header_secret, read_secret
from switchgear.core.clock import Clock
from switchgear.core.errors import Invalid, Reason
from switchgear.core.version import VERSION

_USER_AGENT = f"switchgear/{VERSION}"
_ANSWER_BYTES_MAX = 4096
_OTLP_METHOD = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"
_OTLP_PORT = 4317
_GZIP_LEVEL = 1
#: https://opentelemetry.io/docs/specs/otlp/#failures
_RETRIED = frozenset({
    grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.ABORTED, grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DATA_LOSS, grpc.StatusCode.RESOURCE_EXHAUSTED,
})  # fmt: skip
#: After which nothing of a request can have arrived: of httpx, and how gRPC's text begins when it has no connection.
_NOT_SENT = (httpx.ConnectError, httpx.LocalProtocolError, httpx.UnsupportedProtocol, httpx.InvalidURL)
_NOT_CONNECTED = "failed to connect to all addresses"


class Sender(Protocol):
    """One way to one target, which several requests may take at a time."""

    async def send(self, body: bytes) -> Answer:
        """Sends a request once. Does not raise for what the target or the network does."""

    async def close(self) -> None: ...


class HttpSender:
    """POSTs to a url, or to the one that a file holds when the request is sent: where the url is a secret.

    gzipped: whether bodies are compressed on the way. otlp: whether answers say how much was not taken. confirmed: see `of_http`.
    """

    def __init__(
        self,
        target: Receiver,
        url: str | Path,
        headers: Mapping[str, str],
        clock: Clock,
        *,
        gzipped: bool = False,
        otlp: bool = False,
        confirmed: bool = False,
    ) -> None:
        self._target, self._url = target, url
        self._headers = {**headers, **target.headers, **({"Content-Encoding": "gzip"} if gzipped else {})}
        self._clock = clock
        self._gzipped = gzipped
        self._otlp = otlp
        self._confirmed = confirmed
        self._client = httpx.AsyncClient(
            headers={"User-Agent": _USER_AGENT},
            verify=_tls(target) if isinstance(url, Path) or urlsplit(url).scheme == "https" else False,
            timeout=target.timeout_s,
            limits=httpx.Limits(max_connections=target.connections, max_keepalive_connections=target.connections),
            # Where samples go is said in one place.
            trust_env=False,
        )

    async def send(self, body: bytes) -> Answer:
        try:
            if self._gzipped:
                body = await asyncio.to_thread(gzip.compress, body, _GZIP_LEVEL)
            headers = {**self._headers, **dict(_secret_headers(self._target))}
            url = header_secret(self._url) if isinstance(self._url, Path) else self._url
            # The timeouts of httpx are of single reads and writes.
            async with (
                asyncio.timeout(self._target.timeout_s),
                self._client.stream("POST", url, content=body, headers=headers) as response,
            ):
                said = b""
                async for part in response.aiter_bytes():
                    said += part
                    if len(said) > _ANSWER_BYTES_MAX:
                        break
        except (TimeoutError, httpx.TimeoutException):
            return Answer(Verdict.RETRY, "timeout", f"no answer within {self._target.timeout_s:g} s", in_doubt=True)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            text = str(error)[:TEXT_CHARS_MAX]
            return Answer(Verdict.RETRY, "unreachable", text, in_doubt=not isinstance(error, _NOT_SENT))
        except OSError as error:
            return Answer(Verdict.RETRY, "secret", f"{error.filename}: {error.strerror}"[:TEXT_CHARS_MAX])
        if self._otlp and response.is_success:
            return _partial(said, str(response.status_code))
        return of_http(
            response.status_code,
            said.decode(errors="replace").strip(),
            response.headers,
            self._clock.unix_ns() / 1e9,
            confirmed=self._confirmed,
        )

    async def close(self) -> None:
        await self._client.aclose()


class GrpcSender:
    """Calls OpenTelemetry's MetricsService of the target."""

    def __init__(self, target: OtlpExport) -> None:
        self._target = target
        parts = urlsplit(target.url)
        host = parts.hostname or ""
        address = f"{f'[{host}]' if ':' in host else host}:{parts.port or _OTLP_PORT}"
        self._compression = grpc.Compression.Gzip if target.compression == "gzip" else grpc.Compression.NoCompression
        # A channel of its own, and a wait after a broken connection that is not longer than ours.
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_reconnect_backoff_ms", 5000),
            ("grpc.primary_user_agent", _USER_AGENT),
        ]
        if parts.scheme == "https":
            credentials = grpc.ssl_channel_credentials(
                *(_bytes(file) for file in (target.ca_file, target.key_file, target.cert_file))
            )
            self._channel = grpc.aio.secure_channel(address, credentials, options)
        else:
            self._channel = grpc.aio.insecure_channel(address, options)
        self._export: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(_OTLP_METHOD)

    async def send(self, body: bytes) -> Answer:
        try:
            headers = {**self._target.headers, **dict(_secret_headers(self._target))}
            metadata = tuple((name.lower(), value) for name, value in headers.items())
            said = await self._export(
                body, timeout=self._target.timeout_s, metadata=metadata, compression=self._compression
            )
        except grpc.aio.AioRpcError as error:
            code, text = error.code(), (error.details() or "")[:TEXT_CHARS_MAX]
            too_large = code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in text
            if code not in _RETRIED or too_large:
                return Answer(Verdict.REFUSED, code.name, text)
            in_doubt = code is not grpc.StatusCode.RESOURCE_EXHAUSTED and not text.startswith(_NOT_CONNECTED)
            return Answer(Verdict.RETRY, code.name, text, in_doubt=in_doubt)
        except OSError as error:
            return Answer(Verdict.RETRY, "secret", f"{error.filename}: {error.strerror}"[:TEXT_CHARS_MAX])
        return _partial(said, grpc.StatusCode.OK.name)

    async def close(self) -> None:
        await self._channel.close()


def _partial(said: bytes, code: str) -> Answer:
    try:
        partial = ExportMetricsServiceResponse.FromString(said).partial_success
    except DecodeError:
        return Answer(Verdict.SENT, code)
    return Answer(
        Verdict.SENT, code, partial.error_message[:TEXT_CHARS_MAX], rejected=max(0, partial.rejected_data_points)
    )


def _secret_headers(target: Receiver) -> Iterator[tuple[str, str]]:
    """Raises OSError, with the file's name, for one that cannot be read."""
    for name, file in target.headers_files.items():
        yield name, header_secret(file)
    if target.bearer_token_file is not None:
        yield "Authorization", f"Bearer {header_secret(target.bearer_token_file)}"
    if target.basic_auth is not None:
        both = target.basic_auth.username.encode() + b":" + read_secret(target.basic_auth.password_file)
        yield "Authorization", f"Basic {base64.b64encode(both).decode()}"


def _bytes(file: Path | None) -> bytes | None:
    try:
        return file.read_bytes() if file is not None else None
    except OSError as error:
        raise _unusable(file, error.strerror) from None


def _tls(target: Receiver) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=target.ca_file)
        if target.cert_file is not None:
            context.load_cert_chain(target.cert_file, target.key_file)
    except OSError as error:  # ssl.SSLError is one
        files = ", ".join(str(file) for file in (target.ca_file, target.cert_file, target.key_file) if file is not None)
        raise _unusable(files, str(error)) from None
    return context


def _unusable(files: object, why: str | None) -> Invalid:
    return Invalid(f"cannot use {files} for TLS: {why}", Reason.TLS_FILES)
