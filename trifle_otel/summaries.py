"""What a span was, in one line, by OpenTelemetry's semantic conventions: the stable names first, then the old ones.

`GET https://shop.example/orders → 200`, a database's statement, `publish orders`. Texts leave as they were sent:
screening for secrets is the business of whoever stores them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from trifle_otel.values import text_of

MAX_LENGTH: Final = 1000
"""Characters of a summary."""

_Attributes = Mapping[str, Any]
_Said = tuple[str, str]
"""What was done, and what came of it; each may be empty."""

_READ: Final = 4 * MAX_LENGTH  # characters of a text that are looked at: a statement may be of any size
_MESSAGES: Final = {"message", "event.message", "log.message", "body"}
_OUTCOMES: Final = {"db.response.status_code", "error.type", "db.response.returned_rows"}
_PORTS: Final = {"http": "80", "https": "443", "ws": "80", "wss": "443"}
_VERBS: Final = {"PRODUCER": "publish", "CONSUMER": "process"}
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_GRPC: Final = (
    *("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS"),
    *("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED"),
    *("INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"),
)


def summary(name: str, kind: str, attributes: Mapping[str, Any]) -> str:
    """A span in one line of at most `MAX_LENGTH` characters; its name where no convention says more.

    Args:
        name: the span's name.
        kind: `INTERNAL`, `SERVER`, `CLIENT`, `PRODUCER` or `CONSUMER`.
        attributes: the span's; values of any type. A `dict` is fastest.
    """
    if not attributes or _MARKS.isdisjoint(attributes):
        return one_line(name)
    for mark, describe in _CONVENTIONS:
        if mark in attributes:
            what, outcome = describe(kind, attributes)
            if what:
                return one_line(what, outcome)
    return one_line(name)


def event_text(name: str, attributes: Mapping[str, Any]) -> str:
    """An event of a span as the message of a line, whole: `name: message key=value …`."""
    message = ""
    others = []
    for key, value in attributes.items():
        if key in _MESSAGES and not message:
            message = _text(value)
        else:
            others.append(f"{key}={text_of(value)}")
    return " ".join((f"{name}: {message}" if message else name, *others))


def exception_texts(attributes: Mapping[str, Any]) -> tuple[str, str]:
    """An `exception` event as the message of a line, and its stack trace, which may be empty; both whole."""
    kind, message = text_of(attributes.get("exception.type")), text_of(attributes.get("exception.message"))
    return f"Exception: {message or kind or 'unknown'}", text_of(attributes.get("exception.stacktrace")).rstrip("\n")


def one_line(text: str, outcome: str = "") -> str:
    """A text as one line without control characters, and what came of it after an arrow; cut to `MAX_LENGTH`."""
    line = f"{text} → {outcome}" if outcome else text
    if len(line) <= MAX_LENGTH and line.isprintable():
        return line
    if outcome:
        end = f" → {_flat(outcome)[: MAX_LENGTH // 4]}"
        return _cut(_flat(text), MAX_LENGTH - len(end)) + end
    return _cut(_flat(text), MAX_LENGTH)


def _flat(text: str) -> str:
    if len(text) > _READ:
        text = text[:_READ]
    return text if text.isprintable() else _CONTROL.sub("\ufffd", " ".join(text.split()))


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _first(attributes: _Attributes, *names: str) -> str:
    """The first of these attributes that says something."""
    for name in names:
        value = attributes.get(name)
        if value is not None:
            text = _text(value)
            if text:
                return text
    return ""


def _text(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(text_of, value[:10]))
    return text_of(value)


def _joined(*texts: str) -> str:
    return " ".join(filter(None, texts))


def _error(attributes: _Attributes) -> str:
    return _first(attributes, "error.type")


# -- HTTP


def _http(kind: str, attributes: _Attributes) -> _Said:
    del kind
    method, url = attributes.get("http.request.method"), attributes.get("url.full")
    if type(method) is not str or method == "_OTHER":
        names = ("http.request.method_original",) if method else ("http.method",)
        method = _first(attributes, *names) or text_of(method)
    if type(url) is not str:
        url = _first(attributes, "http.url") or _url(attributes)
    status = attributes.get("http.response.status_code")
    if type(status) is not int:
        status = _first(attributes, "http.response.status_code", "http.status_code", "error.type")
    return f"{method} {url}" if url else method, text_of(status)


def _url(attributes: _Attributes) -> str:
    """What a server was asked for, put together of its parts; the route where it is all that is known."""
    path = _first(attributes, "url.path")
    query = _first(attributes, "url.query")
    target = f"{path}?{query}" if query else path or _first(attributes, "http.target", "http.route")
    host = _host(attributes, scheme := _first(attributes, "url.scheme", "http.scheme"))
    return f"{scheme or 'http'}://{host}{target}" if host else target


def _host(attributes: _Attributes, scheme: str) -> str:
    host = _first(
        attributes, "server.address", "http.host", "http.server_name", "net.host.name", "net.peer.name", "net.peer.ip"
    )
    port = _first(attributes, "server.port", "net.host.port", "net.peer.port")
    if not port or port == _PORTS.get(scheme or "http") or host.endswith(f":{port}"):
        return host
    return f"[{host}]:{port}" if host.count(":") > 1 and not host.startswith("[") else host and f"{host}:{port}"


# -- databases


def _statement(kind: str, attributes: _Attributes) -> _Said:
    del kind
    statement = attributes.get("db.query.text") or attributes.get("db.statement")
    if type(statement) is not str:
        statement = _first(attributes, "db.query.text", "db.statement")
    if "\n" in statement and _first(attributes, "db.system.name", "db.system") == "redis":
        statement = "; ".join(statement[:_READ].splitlines())  # commands of a pipeline
    if statement and "db.operation.batch.size" in attributes:
        statement = f"{_first(attributes, 'db.operation.batch.size')} × {statement}"
    return statement, _rows(attributes)


def _database(kind: str, attributes: _Attributes) -> _Said:
    """A call without a statement: `mongodb find orders`."""
    del kind
    what = _first(attributes, "db.query.summary")
    if not what:
        operation = _first(attributes, "db.operation.name", "db.operation")
        where = _first(
            attributes,
            *("db.collection.name", "db.sql.table", "db.mongodb.collection", "db.cassandra.table"),
            *("aws.dynamodb.table_names", "db.stored_procedure.name", "db.namespace", "db.name"),
        )
        what = operation and _joined(operation, where)
    return what and _joined(_first(attributes, "db.system.name", "db.system"), what), _rows(attributes)


def _rows(attributes: _Attributes) -> str:
    if _OUTCOMES.isdisjoint(attributes):
        return ""
    failed = _first(attributes, "db.response.status_code") or _error(attributes)
    rows = _first(attributes, "db.response.returned_rows")
    return failed or (rows and f"{rows} rows")


# -- messages, remote procedures, functions


def _messaging(kind: str, attributes: _Attributes) -> _Said:
    does = _first(attributes, "messaging.operation.name", "messaging.operation.type", "messaging.operation")
    names = ("messaging.destination.name", "messaging.destination.template", "messaging.destination")
    where = _first(attributes, *names) or _first(attributes, "messaging.system")
    count = _first(attributes, "messaging.batch.message_count")
    return _joined(does or _VERBS.get(kind, ""), where, count and f"({count} messages)"), _error(attributes)


def _celery(kind: str, attributes: _Attributes) -> _Said:
    del kind
    task, action = _first(attributes, "celery.task_name"), _first(attributes, "celery.action")
    return task and _joined(action, task), _first(attributes, "celery.state") or _error(attributes)


def _rpc(kind: str, attributes: _Attributes) -> _Said:
    """`grpc shop.Orders/Get`: today's `rpc.method` holds the service, the old one does not."""
    del kind
    service, method = _first(attributes, "rpc.service"), _first(attributes, "rpc.method")
    if method == "_OTHER":
        method = _first(attributes, "rpc.method_original") or method
    called = method if not service or "/" in method else "/".join(filter(None, (service, method)))
    system = _first(attributes, "rpc.system.name", "rpc.system")
    return called and _joined(system, called, _first(attributes, "aws.s3.bucket")), _rpc_status(attributes)


def _rpc_status(attributes: _Attributes) -> str:
    names = ("rpc.connect_rpc.error_code", "rpc.jsonrpc.error_code", "http.response.status_code", "http.status_code")
    status = _first(attributes, "rpc.response.status_code")
    if not status:
        number = attributes.get("rpc.grpc.status_code")
        if isinstance(number, int) and 0 <= number < len(_GRPC):
            return _GRPC[number]
        status = _first(attributes, "rpc.grpc.status_code", *names)
    return status or _error(attributes)


def _invoke(kind: str, attributes: _Attributes) -> _Said:
    """A call of a function of a provider's."""
    del kind
    name = _first(attributes, "faas.invoked_name")
    return name and _joined("invoke", _first(attributes, "faas.invoked_provider"), name), _error(attributes)


def _function(kind: str, attributes: _Attributes) -> _Said:
    """A function that something started: a document, or a schedule. Else its span's name says as much."""
    del kind
    document = _joined(_first(attributes, "faas.document.operation"), _first(attributes, "faas.document.collection"))
    cron = _first(attributes, "faas.cron")
    name = _first(attributes, "faas.name")
    what = document and _joined(document, _first(attributes, "faas.document.name"))
    return what or (cron and _joined(name, f"timer {cron}")), _error(attributes)


def _graphql(kind: str, attributes: _Attributes) -> _Said:
    del kind
    what = _joined(_first(attributes, "graphql.operation.type"), _first(attributes, "graphql.operation.name"))
    return what or _first(attributes, "graphql.document"), _error(attributes)


# -- GenAI


def _generative(kind: str, attributes: _Attributes) -> _Said:
    """`chat gpt-4o → 120 + 35 tokens`."""
    del kind
    names = ("gen_ai.tool.name", "gen_ai.agent.name", "gen_ai.workflow.name")
    subject = _first(attributes, *names, "gen_ai.response.model", "gen_ai.request.model")
    does = _first(attributes, "gen_ai.operation.name") or _first(attributes, "gen_ai.provider.name", "gen_ai.system")
    return _joined(does, subject), _error(attributes) or _tokens(attributes)


def _tokens(attributes: _Attributes) -> str:
    given = _first(attributes, "gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens")
    made = _first(attributes, "gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens")
    count = " + ".join(filter(None, (given, made)))
    return count and f"{count} tokens"


def _protocol_of_models(kind: str, attributes: _Attributes) -> _Said:
    """The Model Context Protocol: `tools/call weather`."""
    del kind
    subject = _first(attributes, "gen_ai.tool.name", "gen_ai.prompt.name", "mcp.resource.uri")
    return _joined(_first(attributes, "mcp.method.name"), subject), _error(attributes)


_CONVENTIONS: Final[tuple[tuple[str, Callable[[str, _Attributes], _Said]], ...]] = (
    # What tells the most comes first: a statement sent over HTTP, a queue behind a remote procedure.
    ("db.query.text", _statement),
    ("db.statement", _statement),
    ("http.request.method", _http),
    ("http.method", _http),
    ("mcp.method.name", _protocol_of_models),
    ("gen_ai.operation.name", _generative),
    ("gen_ai.system", _generative),
    ("celery.task_name", _celery),
    ("messaging.system", _messaging),
    ("messaging.destination.name", _messaging),
    ("messaging.destination", _messaging),
    ("db.system.name", _database),
    ("db.system", _database),
    ("rpc.system.name", _rpc),
    ("rpc.system", _rpc),
    ("rpc.method", _rpc),
    ("faas.invoked_name", _invoke),
    ("faas.document.operation", _function),
    ("faas.cron", _function),
    ("graphql.operation.type", _graphql),
    ("graphql.document", _graphql),
)
"""An attribute that tells which convention a span follows, and what puts it into words."""

_MARKS: Final = frozenset(mark for mark, _ in _CONVENTIONS)
