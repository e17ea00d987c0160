"""Sends OTLP trace requests over HTTP or gRPC, again and again where the answer says that this may help.

What OTLP says of answers is kept here: which may be tried again, when, and which part of a request was refused.
The exporters of OpenTelemetry's SDK cannot be used for that: they take spans of the SDK alone, and say no more of
an answer than that it was a failure.
"""

from __future__ import annotations

import gzip
import random
import socket
import time
from collections.abc import Callable
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from trifle_otel.errors import TrifleError, UsageError
from trifle_otel.otlp.endpoint import GRPC, Endpoint

if TYPE_CHECKING:
    import requests

CONNECTING = 10.0
"""Seconds that making a connection may take."""
ANSWERING = 30.0
"""Seconds that an answer may take."""
PATIENCE = 120.0
"""Seconds after which a request is not tried again."""

_LONGEST_PAUSE = 30.0
_SHOWN = 300  # characters of what a server says


class EndpointUnavailable(TrifleError):
    """Nobody answers at the endpoint, or it takes no traces at all: nothing more need be tried."""


class RequestRefused(TrifleError):
    """The endpoint refuses this one request for good.

    Attributes:
        too_large: whether it is its size: parts of it may be taken.
    """

    def __init__(self, message: str, *, too_large: bool = False) -> None:
        super().__init__(message)
        self.too_large = too_large


class Answer(NamedTuple):
    """What the endpoint has not taken of a request that it has taken: how many spans, and why."""

    rejected: int = 0
    message: str = ""


class _TryLaterError(Exception):
    """The request may be tried again, after so many seconds where the server says so."""

    def __init__(self, reason: str, after: float | None = None, *, unreachable: bool = False) -> None:
        super().__init__(reason)
        self.after = after
        self.unreachable = unreachable


class _Transport(Protocol):
    """One way of sending. `post` raises `_TryLaterError`, `RequestRefused` and `EndpointUnavailable`."""

    def post(self, request: ExportTraceServiceRequest) -> Answer: ...
    def close(self) -> None: ...


class Sender:
    """Sends requests to an endpoint. A context manager that closes its connection.

    Args:
        endpoint: where to.
        patience: seconds after which a request is not tried again.
        answering: seconds that an answer may take.
        clock: seconds on a monotonic clock.
        sleep: waits for so many seconds.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        patience: float = PATIENCE,
        answering: float = ANSWERING,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.endpoint = endpoint
        self._patience = patience
        self._clock = clock
        self._sleep = sleep
        self._reached = False
        make: Callable[[Endpoint, float], _Transport] = _Grpc if endpoint.protocol == GRPC else _Http
        self._transport = make(endpoint, answering)

    def send(self, request: ExportTraceServiceRequest) -> Answer:
        """Send a request, and wait until it is taken.

        Raises `RequestRefused`, and `EndpointUnavailable` where nobody is there, or where the patience is over.
        """
        began, pause = self._clock(), 1.0
        while True:
            try:
                answer = self._transport.post(request)
                self._reached = True
                return answer
            except _TryLaterError as later:
                if later.unreachable and not self._reached:
                    raise EndpointUnavailable(f"nobody answers at {self.endpoint.name}: {later}") from later
                wait = later.after or pause * random.uniform(0.8, 1.2)
                if self._clock() - began + wait > self._patience:
                    raise EndpointUnavailable(self._given_up(later)) from later
                self._sleep(wait)
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _given_up(self, later: _TryLaterError) -> str:
        """Why a request is not tried again."""
        if later.after is not None and later.after > self._patience:
            return f"{self.endpoint.name} wants nothing for the next {later.after:g} s: {later}"
        return f"{self.endpoint.name} has not taken a request for {self._patience:g} s: {later}"

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    def __enter__(self) -> Sender:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


# --- HTTP

_AGAIN = (429, 502, 503, 504)
_NO_TRACES_HERE = (401, 403, 404, 405, 415)


class _Http:
    """OTLP over HTTP, as protobuf."""

    def __init__(self, endpoint: Endpoint, answering: float) -> None:
        import requests  # noqa: PLC0415 - only where HTTP is spoken

        self.endpoint = endpoint
        self._errors = requests.exceptions
        self._timeout = (CONNECTING, answering)
        self._session = requests.Session()
        self._session.auth = _as_it_is
        headers = {**endpoint.headers, "content-type": "application/x-protobuf"}
        if endpoint.gzip:
            headers["content-encoding"] = "gzip"
        self._session.headers.update(headers)
        if endpoint.client_certificate:
            key = endpoint.client_key
            self._session.cert = (endpoint.client_certificate, key) if key else endpoint.client_certificate

    def post(self, request: ExportTraceServiceRequest) -> Answer:
        body = request.SerializeToString()
        if self.endpoint.gzip:
            body = gzip.compress(body, 6)
        errors = self._errors
        verify = self.endpoint.certificate  # given with each request: the session's yields to REQUESTS_CA_BUNDLE
        try:
            response = self._session.post(
                self.endpoint.url, body, timeout=self._timeout, allow_redirects=False, verify=verify
            )
        except errors.SSLError as error:
            raise EndpointUnavailable(f"{self.endpoint.name} cannot be trusted: {_root_cause(error)}") from error
        except errors.ReadTimeout as error:
            raise _TryLaterError(f"no answer within {self._timeout[1]:g} s") from error
        except (errors.ConnectionError, errors.ChunkedEncodingError) as error:
            raise _TryLaterError(_root_cause(error), unreachable=True) from error
        except (errors.RequestException, OSError, ValueError) as error:  # a header, a URL, a certificate's file
            raise UsageError(f"{self.endpoint.name} cannot be used: {error}") from error
        return self._judged(response)

    def _judged(self, response: requests.Response) -> Answer:
        """What an answer means, by OTLP's rules. Raises what it says."""
        status = response.status_code
        if 200 <= status < 300:
            return _answer(response.content)
        said = f"{status} {response.reason or ''} {_said(response)}".strip()
        if status in _AGAIN:
            raise _TryLaterError(said, _retry_after(response.headers.get("retry-after")))
        if status in _NO_TRACES_HERE or 300 <= status < 400:
            raise EndpointUnavailable(f"{self.endpoint.name} takes no traces from here: {said}")
        raise RequestRefused(said, too_large=status == 413)

    def close(self) -> None:
        self._session.close()


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Keeps the `authorization` header that was given: without this, an entry in ~/.netrc would take its place."""
    return request


def _answer(body: bytes) -> Answer:
    try:
        partial = ExportTraceServiceResponse.FromString(body).partial_success
    except DecodeError:  # in some other format; that it was taken, the status says
        return Answer()
    return Answer(partial.rejected_spans, partial.error_message)


def _said(response: requests.Response) -> str:
    """What a refusal says: OTLP wraps it in protobuf, proxies do not."""
    body = response.content[: 4 * _SHOWN]
    if "protobuf" in response.headers.get("content-type", ""):
        from google.rpc.status_pb2 import Status  # noqa: PLC0415 - only where there is a refusal

        try:
            return str(Status.FromString(response.content).message)[:_SHOWN]
        except DecodeError:
            pass
    return " ".join(body.decode("utf-8", "replace").split())[:_SHOWN]


def _retry_after(value: str | None) -> float | None:
    """Seconds to wait, by a header that holds them, or a date."""
    if not value:
        return None
    try:
        if value.strip().isdigit():
            return float(value)
        moment = parsedate_to_datetime(value)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
        return max((moment - datetime.now(timezone.utc)).total_seconds(), 0.0)
    except (ValueError, OverflowError):
        return None


def _root_cause(error: BaseException) -> str:
    """What the system said, out of the exceptions that libraries wrap it in."""
    found: BaseException = error
    while True:
        inner = found.__cause__ or found.__context__ or getattr(found, "reason", None)
        if not isinstance(inner, BaseException):
            break
        found = inner
    text = found.strerror if isinstance(found, OSError) and found.strerror else str(found)
    return text or type(found).__name__


# --- gRPC


class _Grpc:
    """OTLP over gRPC."""

    def __init__(self, endpoint: Endpoint, answering: float) -> None:
        import grpc  # noqa: PLC0415 - only where gRPC is spoken
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub  # noqa: PLC0415

        self.endpoint = endpoint
        self._answering = answering
        self._metadata = tuple(endpoint.headers.items())
        self._channel = self._open(grpc)
        stub: Any = TraceServiceStub  # generated without types
        self._export = stub(self._channel).Export
        self._codes = grpc.StatusCode
        self._error = grpc.RpcError
        code = grpc.StatusCode
        self._again = {
            code.CANCELLED,
            code.DEADLINE_EXCEEDED,
            code.ABORTED,
            code.OUT_OF_RANGE,
            code.UNAVAILABLE,
            code.DATA_LOSS,
        }
        self._no_traces_here = {code.UNAUTHENTICATED, code.PERMISSION_DENIED, code.UNIMPLEMENTED}

    def _open(self, grpc: Any) -> Any:
        endpoint = self.endpoint
        compression = grpc.Compression.Gzip if endpoint.gzip else grpc.Compression.NoCompression
        if not endpoint.secure:
            return grpc.insecure_channel(endpoint.url, compression=compression)
        try:
            files = (endpoint.certificate, endpoint.client_key, endpoint.client_certificate)
            roots, key, chain = (Path(file).read_bytes() if file else None for file in files)
        except OSError as error:
            raise UsageError(f"{endpoint.name} cannot be used: {error}") from error
        return grpc.secure_channel(
            endpoint.url, grpc.ssl_channel_credentials(roots, key, chain), compression=compression
        )

    def post(self, request: ExportTraceServiceRequest) -> Answer:
        try:
            response = self._export(request, timeout=self._answering, metadata=self._metadata)
        except self._error as error:
            raise self._meaning(error) from error
        except (TypeError, ValueError) as error:  # of a header
            raise UsageError(f"{self.endpoint.name} cannot be used: {error}") from error
        return Answer(response.partial_success.rejected_spans, response.partial_success.error_message)

    def _nobody(self, said: str) -> str:
        """Why nobody can be reached, "" where somebody can: a server that is busy has the same status."""
        if "failed to connect" in said:
            return said.rpartition(": ")[2]
        host, _, port = self.endpoint.url.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECTING).close()
        except OSError as error:
            return error.strerror or str(error)
        return ""

    def _meaning(self, error: Any) -> Exception:
        """What a status means, by OTLP's rules."""
        code = error.code()
        said = f"{code.name} {error.details() or ''}"[:_SHOWN].strip()
        after = _retry_info(error)
        if code in self._again:
            nobody = self._nobody(said) if code is self._codes.UNAVAILABLE and after is None else ""
            return _TryLaterError(nobody or said, after, unreachable=bool(nobody))
        if code is self._codes.RESOURCE_EXHAUSTED:  # too much at once, or too large, which no waiting helps
            return RequestRefused(said, too_large=True) if after is None else _TryLaterError(said, after)
        if code in self._no_traces_here:
            return EndpointUnavailable(f"{self.endpoint.name} takes no traces from here: {said}")
        return RequestRefused(said)

    def close(self) -> None:
        self._channel.close()


def _retry_info(error: Any) -> float | None:
    """Seconds after which the server wants another try, in the details of a status."""
    from google.rpc.error_details_pb2 import RetryInfo  # noqa: PLC0415 - only where there is a refusal
    from google.rpc.status_pb2 import Status  # noqa: PLC0415

    for name, value in error.trailing_metadata() or ():
        if name != "grpc-status-details-bin":
            continue
        try:
            for detail in Status.FromString(value).details:
                info = RetryInfo()
                if detail.Unpack(info):
                    return float(info.retry_delay.ToNanoseconds()) / 1e9
        except DecodeError:
            continue
    return None
