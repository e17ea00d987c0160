"""Keys of executions that were made of spans: path-like and few, whatever their names hold.

By the semantic conventions where they say what kind of work it was, else by the span's name with its variable parts
left out. A raw path, a query, an id never becomes part of a key. What is safe as a path is `references`' business.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from trifle_otel.references import UNNAMED
from trifle_otel.span_data import CONSUMER, PRODUCER, SERVER, SpanData
from trifle_otel.values import text_of

MAX_DEPTH: Final = 8
"""Segments of a key."""

MAX_SEGMENT: Final = 80
"""Characters of a segment."""

ANY: Final = "*"
"""Stands for a variable part."""

_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY")
_NAME: Final = 500  # characters of a name that are looked at
_IDS = re.compile(
    r"""
    (?<![0-9A-Za-z]) (?:
        [0-9a-f]{8} (?:-[0-9a-f]{4}){3} -[0-9a-f]{12}         # a UUID
        | [0-7][0-9A-HJKMNP-TV-Z]{25}                         # a ULID
        | 0x[0-9a-f]+
        | (?=[a-f]*[0-9]) [0-9a-f]{8,}                        # hexadecimal, with a digit in it
        | [0-9]+ (?:[.,:T_-][0-9]+)*                          # a number, a date, a version
    ) (?![0-9A-Za-z])
    | [0-9]{4,}                                               # a long number, wherever it stands
    """,
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)
_STARS = re.compile(r"\*(?:[-_.:, ]*\*)+")
_PARAMETERS = re.compile(r"\(\?P<(\w+)>(?:[^()]|\([^()]*\))*\)")  # of routes that are regular expressions
_REGULAR = re.compile(r"[\^$]|\\[AZz]")


def key_of(span: SpanData) -> str:
    """The key of an execution with this root, not made safe yet."""
    attributes = span.attributes
    if attributes:
        for convention in (_http, _job, _rpc):
            key = convention(span, attributes)
            if key:
                return key
    return general(text_of(span.name)[:_NAME])


def _http(span: SpanData, attributes: Mapping[str, Any]) -> str:
    """`http/GET/orders/{id}` of what was served; a call of somebody else's server is no such thing."""
    method = text_of(attributes.get("http.request.method") or attributes.get("http.method"))
    route = attributes.get("http.route")
    if not method or (span.kind != SERVER and not route):
        return ""
    if method not in _METHODS:
        method = method.upper() if method.upper() in _METHODS else "other"
    if route:
        return f"http/{method}/{_route(text_of(route)[:_NAME])}".rstrip("/")
    name = text_of(span.name)[:_NAME]
    path = name.partition(" ")[2] if name.partition(" ")[0].upper() in (*_METHODS, "HTTP") else name
    if not path.startswith("/") or path.partition("?")[0] == _raw_path(attributes):
        return f"http/{method}"
    return f"http/{method}/{general(path)}"


def _raw_path(attributes: Mapping[str, Any]) -> str:
    target = attributes.get("url.path") or attributes.get("http.target") or ""
    return text_of(target)[:_NAME].partition("?")[0]


@lru_cache(maxsize=1024)
def _route(route: str) -> str:
    """A route as a path. It is a template, which is kept as it is, unless it is a regular expression."""
    if "(?P<" in route or "^" in route:
        route = _REGULAR.sub("", _PARAMETERS.sub(r"{\1}", route))
    return _bounded(route.split("/"), nothing="")


def _job(span: SpanData, attributes: Mapping[str, Any]) -> str:
    """`jobs/reports.daily`; `publish/orders` of what only puts something into a queue."""
    name = text_of(
        attributes.get("celery.task_name")
        or attributes.get("messaging.destination.template")
        or _destination(attributes)
        or (attributes.get("faas.name") if attributes.get("faas.trigger") in ("timer", "pubsub", "datasource") else "")
    )
    if not name:
        return ""
    return f"{'publish' if span.kind == PRODUCER else 'jobs'}/{general(name[:_NAME])}"


def _destination(attributes: Mapping[str, Any]) -> object:
    if "messaging.system" not in attributes and "messaging.operation.type" not in attributes:
        return ""
    if attributes.get("messaging.destination.temporary") or attributes.get("messaging.destination.anonymous"):
        return ANY
    return attributes.get("messaging.destination.name") or attributes.get("messaging.destination")


def _rpc(span: SpanData, attributes: Mapping[str, Any]) -> str:
    """`rpc/shop.Orders/Get`: today's `rpc.method` holds the service, the old one does not."""
    method = text_of(attributes.get("rpc.method"))
    if not method or method == "_OTHER" or span.kind not in (SERVER, CONSUMER):
        return ""
    service = text_of(attributes.get("rpc.service"))
    return f"rpc/{general(method if not service or '/' in method else f'{service}/{method}')}"


@lru_cache(maxsize=4096)
def general(name: str) -> str:
    """A name as a key: paths stay paths, and what differs from one call to the next becomes `*`."""
    name = name.partition("?")[0].replace(" /", "/")
    return _bounded([_STARS.sub(ANY, _IDS.sub(ANY, part)) for part in name.split("/")])


def _bounded(parts: list[str], nothing: str = UNNAMED) -> str:
    """Segments as a key that is neither deep nor long."""
    named = [" ".join(part.split())[:MAX_SEGMENT].strip(" .") for part in parts]
    kept = [part for part in named if part]
    return "/".join(kept[:MAX_DEPTH]) or nothing
