"""Where OTLP is sent: an endpoint's URL, its protocol, headers and certificates, from arguments and OpenTelemetry's
variables.

Nothing is sent here: that is `otlp.sending`'s business. The variables themselves are read by `configuration`.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

from opentelemetry.util.re import parse_env_headers

from trifle_otel.errors import UsageError

GRPC: Final = "grpc"
HTTP: Final = "http/protobuf"
PROTOCOLS: Final = (HTTP, GRPC)
DEFAULT: Final = "http://localhost:4318"
PATH: Final = "v1/traces"

MOST_BYTES: Final = {GRPC: 4 * 1024 * 1024, HTTP: 20 * 1024 * 1024}
"""Bytes of a request that receivers take where nothing else is set, before compression."""

_NAME = re.compile(r"[a-z0-9_.!#$&'*+^`|~-]+", re.ASCII)
_GRPC_PORTS, _HTTP_PORTS = (4317, 4417), (4318, 4418)  # of collectors, and of `trifle-otel receive`
_SCHEMES = {"http": False, "https": True, "grpc": False, "grpcs": True}


@dataclass(frozen=True)
class Endpoint:
    """Where requests go.

    Attributes:
        url: over HTTP the URL that is posted to, over gRPC `host:port`. Never credentials.
        protocol: `http/protobuf` or `grpc`.
        secure: whether it is TLS.
        headers: sent with each request, their names in lower case.
        gzip: whether requests are compressed.
        certificate: file with the certificates that are trusted; None: those of the system.
        client_certificate: file with the certificate that this side shows; None: none.
        client_key: file with its key.
    """

    url: str
    protocol: str
    secure: bool
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    gzip: bool = False
    certificate: str | None = None
    client_certificate: str | None = None
    client_key: str | None = None

    @property
    def name(self) -> str:
        """What to call it in messages."""
        return self.url if self.protocol == HTTP else f"{'grpcs' if self.secure else 'grpc'}://{self.url}"


def endpoint_of(
    url: str | None = None, protocol: str | None = None, variables: Mapping[str, str] | None = None
) -> Endpoint:
    """The endpoint that is meant.

    Args:
        url: as in `http://host:4318`, `https://host/otlp` (`/v1/traces` is added where it is not there),
            `host:4317`, `grpc://host`; None: what the variables say, else `http://localhost:4318`.
        protocol: `http/protobuf` or `grpc`; None: what the URL's scheme, port or path tells, else the variables.
        variables: OpenTelemetry's, by their names after `OTEL_EXPORTER_OTLP_`; those that begin with `TRACES_` count
            more.

    Raises `UsageError` for what is no URL or no protocol.
    """
    known = _for_traces(variables or {})
    exact = url is None and bool((variables or {}).get("TRACES_ENDPOINT"))  # by OpenTelemetry's rule it gets no path
    given = url or known.get("ENDPOINT") or DEFAULT
    parts, secure = _parse(given, known.get("INSECURE", "true").strip().lower() == "false")
    variable = known.get("PROTOCOL", "").strip().lower()
    if protocol is None and url is None and variable:
        protocol = GRPC if variable == GRPC else HTTP  # http/json is read by whoever reads http/protobuf
    chosen = _protocol(protocol, parts, variable)
    headers = dict(parse_env_headers(known.get("HEADERS", ""), liberal=True))
    if parts.username is not None and "authorization" not in headers:
        headers["authorization"] = _basic(parts)
    for name, value in headers.items():
        if not _NAME.fullmatch(name) or not (value.isascii() and value.isprintable()):
            raise UsageError(f"not a header that can be sent: {name!r}; its name and value are plain ASCII")
    return Endpoint(
        _grpc_target(parts) if chosen == GRPC else _http_url(parts, secure, exact=exact),
        chosen,
        secure,
        headers,
        known.get("COMPRESSION", "").strip().lower() == "gzip",
        known.get("CERTIFICATE"),
        known.get("CLIENT_CERTIFICATE"),
        known.get("CLIENT_KEY"),
    )


def _parse(given: str, secure: bool) -> tuple[SplitResult, bool]:
    """The parts of a URL, and whether it is TLS; where no scheme says so, what was given."""
    try:
        given.encode()  # raises for bytes of the command line that are not UTF-8
        parts = urlsplit(given if "://" in given else f"//{given}")
        port = parts.port
    except ValueError as error:
        raise UsageError(f"not an endpoint: {_shown(given)} ({error})") from error
    if not parts.hostname or port == 0:
        raise UsageError(f"not an endpoint: {_shown(given)}; it is as in http://collector:4318 or collector:4317")
    if parts.scheme and parts.scheme not in _SCHEMES:
        raise UsageError(f"an endpoint's scheme is {', '.join(_SCHEMES)}, not {parts.scheme!r}")
    return parts, _SCHEMES.get(parts.scheme, secure)


def _for_traces(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables without those of other signals, each by its plain name; those for traces alone count more."""
    plain = {name: value for name, value in variables.items() if value}
    own = {name.removeprefix("TRACES_"): value for name, value in plain.items() if name.startswith("TRACES_")}
    return {**plain, **own}


def _protocol(given: str | None, parts: SplitResult, variable: str) -> str:
    if given is not None:
        if given not in PROTOCOLS:
            raise UsageError(f"no such protocol: {given!r}; it is {' or '.join(PROTOCOLS)}")
        return given
    if parts.scheme.startswith("grpc"):
        return GRPC
    if parts.path.strip("/") or parts.port in _HTTP_PORTS:
        return HTTP
    if parts.port in _GRPC_PORTS:
        return GRPC
    return GRPC if variable == GRPC else HTTP


def _grpc_target(parts: SplitResult) -> str:
    host = _host(parts)
    port = parts.port or (443 if parts.scheme in ("https", "grpcs") else _GRPC_PORTS[0])
    return f"{host}:{port}"


def _http_url(parts: SplitResult, secure: bool, *, exact: bool) -> str:
    port = f":{parts.port}" if parts.port else ("" if parts.scheme in ("http", "https") else f":{_HTTP_PORTS[0]}")
    path = parts.path
    if not exact and not path.rstrip("/").endswith(f"/{PATH}"):
        path = f"{path.rstrip('/')}/{PATH}"
    query = f"?{parts.query}" if parts.query else ""
    return f"{'https' if secure else 'http'}://{_host(parts)}{port}{path or '/'}{query}"


def _host(parts: SplitResult) -> str:
    host = parts.hostname or ""
    return f"[{host}]" if ":" in host else host


def _basic(parts: SplitResult) -> str:
    user = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return "Basic " + base64.b64encode(user.encode()).decode()


def _shown(given: str) -> str:
    """A URL for a message, without what may be a password."""
    return repr(given.rpartition("@")[2])
