"""What a span was, in one line: by the stable semantic conventions, by the old ones, and whatever is sent."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trifle_otel.summaries import event_text, exception_texts, summary

KINDS = ("INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER")
STABLE_HTTP = {"http.request.method": "GET", "url.full": "https://shop.example/orders?page=2"}
SERVED = {"http.request.method": "POST", "url.scheme": "https", "url.path": "/orders", "server.address": "shop.example"}
OLD_SERVED = {"http.method": "GET", "http.scheme": "http", "http.host": "shop.example:8080", "http.target": "/a?b=1"}
RPC = {"rpc.system": "grpc", "rpc.service": "shop.Orders", "rpc.method": "Get"}
CHAT = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "gpt-4o"}
LAMBDA = {"faas.invoked_provider": "aws", "faas.invoked_name": "resize"}
UPLOAD = {
    "faas.document.operation": "insert",
    "faas.document.collection": "images",
    "faas.document.name": "cat.png",
    "faas.trigger": "datasource",
}


@pytest.mark.parametrize(
    "attributes, expected",
    [
        ({**STABLE_HTTP, "http.response.status_code": 200}, "GET https://shop.example/orders?page=2 → 200"),
        ({**STABLE_HTTP, "error.type": "ConnectionError"}, "GET https://shop.example/orders?page=2 → ConnectionError"),
        ({**STABLE_HTTP, "error.type": "500", "http.response.status_code": 500}, "GET … → 500"),
        (STABLE_HTTP, "GET https://shop.example/orders?page=2"),
        ({"http.method": "PUT", "http.url": "http://h/x", "http.status_code": 404}, "PUT http://h/x → 404"),
        ({**STABLE_HTTP, "http.url": "http://old", "http.method": "OLD", "http.status_code": 1}, "GET … → 1"),
        ({"http.request.method": "_OTHER", "http.request.method_original": "BREW", "url.full": "x:"}, "BREW x:"),
        ({"http.request.method": "_OTHER", "url.full": "x:"}, "_OTHER x:"),
        ({"http.request.method": "GET"}, "GET"),
        (SERVED, "POST https://shop.example/orders"),
        ({**SERVED, "server.port": 443, "url.query": "a=1"}, "POST https://shop.example/orders?a=1"),
        ({**SERVED, "server.port": 8443}, "POST https://shop.example:8443/orders"),
        ({**SERVED, "server.address": "::1", "server.port": 8443}, "POST https://[::1]:8443/orders"),
        ({**OLD_SERVED, "net.host.port": 8080, "http.status_code": 200}, "GET http://shop.example:8080/a?b=1 → 200"),
        ({"http.method": "GET", "http.target": "/a", "net.host.name": "h", "net.host.port": 80}, "GET http://h/a"),
        ({"http.method": "GET", "http.route": "/orders/{id}"}, "GET /orders/{id}"),
    ],
)
def test_a_call_over_http_is_its_method_its_url_and_what_came_back(attributes: dict[str, Any], expected: str) -> None:
    """HTTP is told by method, URL (of its parts where it is not there as a whole) and status, else the error."""
    expected = expected.replace("…", "https://shop.example/orders?page=2")
    assert summary("name", "CLIENT", attributes) == expected


@pytest.mark.parametrize(
    "attributes, expected",
    [
        ({"db.system.name": "postgresql", "db.query.text": "SELECT 1"}, "SELECT 1"),
        ({"db.system": "sqlite", "db.statement": "SELECT *\n   FROM x\n"}, "SELECT * FROM x"),
        ({"db.query.text": "SELECT 1", "db.statement": "SELECT 2"}, "SELECT 1"),
        ({"db.query.text": "SELECT 1", "db.response.returned_rows": 3}, "SELECT 1 → 3 rows"),
        ({"db.query.text": "SELECT 1", "db.response.status_code": "42P01"}, "SELECT 1 → 42P01"),
        ({"db.query.text": "INSERT INTO x", "db.operation.batch.size": 50}, "50 × INSERT INTO x"),
        ({"db.system": "redis", "db.statement": "HSET ? ? ?"}, "HSET ? ? ?"),
        ({"db.system.name": "redis", "db.query.text": "GET ?\nINCRBY ? ?"}, "GET ?; INCRBY ? ?"),
        ({"db.system.name": "redis", "db.operation.name": "GET", "db.namespace": "0"}, "redis GET 0"),
        ({"db.system": "mongodb", "db.operation": "find", "db.mongodb.collection": "orders"}, "mongodb find orders"),
        ({"db.system.name": "mysql", "db.query.summary": "SELECT orders"}, "mysql SELECT orders"),
        ({"db.system": "dynamodb", "db.operation": "Get", "aws.dynamodb.table_names": ("a", "b")}, "dynamodb Get a, b"),
        ({"db.system": "sqlite", "db.name": ":memory:"}, "name"),
        ({**STABLE_HTTP, "db.system.name": "elasticsearch", "db.query.text": '{"query": {}}'}, '{"query": {}}'),
    ],
)
def test_a_call_of_a_database_is_its_statement(attributes: dict[str, Any], expected: str) -> None:
    """A statement in one line, where there is none system, operation and table; the name where there is neither."""
    assert summary("name", "CLIENT", attributes) == expected


@pytest.mark.parametrize(
    "kind, attributes, expected",
    [
        ("PRODUCER", {"messaging.system": "kafka", "messaging.destination.name": "orders"}, "publish orders"),
        ("PRODUCER", {"messaging.operation.name": "send", "messaging.destination.name": "orders"}, "send orders"),
        ("CONSUMER", {"messaging.system": "rabbitmq", "messaging.destination": "orders"}, "process orders"),
        ("CLIENT", {"messaging.system": "aws_sqs", "messaging.operation": "receive"}, "receive aws_sqs"),
        (
            "CONSUMER",
            {"messaging.destination.name": "orders", "messaging.batch.message_count": 12, "error.type": "Timeout"},
            "process orders (12 messages) → Timeout",
        ),
        (
            "CONSUMER",
            {"celery.action": "run", "celery.task_name": "shop.bill", "celery.state": "SUCCESS"},
            "run shop.bill → SUCCESS",
        ),
        ("CLIENT", {**RPC, "rpc.grpc.status_code": 0}, "grpc shop.Orders/Get → OK"),
        ("CLIENT", {**RPC, "rpc.grpc.status_code": 14}, "grpc shop.Orders/Get → UNAVAILABLE"),
        ("CLIENT", {**RPC, "rpc.grpc.status_code": 99}, "grpc shop.Orders/Get → 99"),
        ("SERVER", {"rpc.system.name": "grpc", "rpc.method": "shop.Orders/Get"}, "grpc shop.Orders/Get"),
        ("CLIENT", {"rpc.method": "a/B", "rpc.response.status_code": "NOT_FOUND"}, "a/B → NOT_FOUND"),
        (
            "CLIENT",
            {"rpc.system": "aws-api", "rpc.service": "S3", "rpc.method": "PutObject", "aws.s3.bucket": "b"},
            "aws-api S3/PutObject b",
        ),
        ("CLIENT", LAMBDA, "invoke aws resize"),
        ("SERVER", UPLOAD, "insert images cat.png"),
        ("SERVER", {"faas.cron": "0 5 * * *", "faas.name": "nightly"}, "nightly timer 0 5 * * *"),
        ("SERVER", {"graphql.operation.type": "query", "graphql.operation.name": "orders"}, "query orders"),
        ("CLIENT", {"mcp.method.name": "tools/call", "gen_ai.tool.name": "weather"}, "tools/call weather"),
        ("CLIENT", CHAT, "chat gpt-4o"),
        ("CLIENT", {**CHAT, "gen_ai.response.model": "gpt-4o-2024-08-06"}, "chat gpt-4o-2024-08-06"),
        (
            "CLIENT",
            {**CHAT, "gen_ai.usage.input_tokens": 120, "gen_ai.usage.output_tokens": 35},
            "chat gpt-4o → 120 + 35 tokens",
        ),
        ("CLIENT", {"gen_ai.system": "openai", "gen_ai.usage.prompt_tokens": 7}, "openai → 7 tokens"),
        ("INTERNAL", {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "weather"}, "execute_tool weather"),
    ],
)
def test_other_conventions_are_told_in_their_own_words(kind: str, attributes: dict[str, Any], expected: str) -> None:
    """Messages, remote procedures, functions and models, by what their conventions call the main things."""
    assert summary("name", kind, attributes) == expected


@pytest.mark.parametrize("attributes", [{}, {"thread.id": 7}, {"db.system": None}, {"http.route": "/x"}])
def test_the_name_is_all_that_is_left(attributes: dict[str, Any]) -> None:
    """Where no convention says more, the summary is the span's name."""
    assert summary("compute tax", "INTERNAL", attributes) == "compute tax"


def test_what_came_of_it_stays_where_the_rest_is_cut() -> None:
    """A URL of any length leaves the status in sight, and a statement of megabytes is cut."""
    text = summary("GET", "CLIENT", {**STABLE_HTTP, "url.full": "x" * 10**6, "http.response.status_code": 503})
    assert len(text) == 1000
    assert text.endswith("x… → 503")
    statement = summary("SELECT", "CLIENT", {"db.statement": "SELECT " * 10**6})
    assert len(statement) == 1000
    assert statement.endswith("…")


NAMES = [
    *("http.request.method", "url.full", "url.path", "server.address", "server.port", "http.response.status_code"),
    *("http.method", "http.target", "http.host", "db.query.text", "db.statement", "db.system", "db.operation"),
    *("messaging.system", "messaging.destination.name", "messaging.batch.message_count", "celery.task_name"),
    *("rpc.system", "rpc.service", "rpc.method", "rpc.grpc.status_code", "faas.invoked_name", "faas.cron"),
    *("gen_ai.operation.name", "gen_ai.request.model", "gen_ai.usage.input_tokens", "graphql.document", "error.type"),
]
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
VALUES = PLAIN | st.lists(PLAIN, max_size=3) | st.dictionaries(st.text(), PLAIN, max_size=3)


@given(st.text(), st.sampled_from(KINDS), st.dictionaries(st.sampled_from(NAMES), VALUES))
@example("a\x00b\ud800", "CLIENT", {"http.method": "GET", "http.url": b"\xff"})
@example("\n", "SERVER", {"http.request.method": "GET", "http.response.status_code": 10**5000})
def test_any_span_is_one_short_line(name: str, kind: str, attributes: dict[str, Any]) -> None:
    """Whatever a span is made of, its summary is at most 1,000 characters of one line, and nothing raises."""
    text = summary(name, kind, attributes)
    assert len(text) <= 1000
    assert not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text)


def test_a_value_that_cannot_be_shown_is_described() -> None:
    """A value whose own methods raise is told by its type."""

    class Hostile:
        def __str__(self) -> str:
            raise RuntimeError("no")

        __repr__ = __str__

    assert "Hostile" in summary("name", "CLIENT", {"http.method": "GET", "http.url": Hostile()})


def test_an_event_is_its_name_its_message_and_the_rest() -> None:
    """An event's message follows its name, other attributes as `key=value`, all of them whole."""
    assert event_text("retry", {}) == "retry"
    assert event_text("retry", {"attempt": 2, "delay": 0.5}) == "retry attempt=2 delay=0.5"
    assert event_text("log", {"message": "over\nlines", "attempt": 2}) == "log: over\nlines attempt=2"
    assert event_text("log", {"body": "x" * 5000}) == "log: " + "x" * 5000


def test_an_exception_is_its_message_and_its_stack() -> None:
    """An exception's message is its type where it says nothing; a stack trace loses nothing but its last line's end."""
    stack = "Traceback (most recent call last):\n  …\nValueError: no\n"
    event = {"exception.type": "ValueError", "exception.message": "no", "exception.stacktrace": stack}
    assert exception_texts(event) == ("Exception: no", stack[:-1])
    assert exception_texts({"exception.type": "ValueError", "exception.message": ""}) == ("Exception: ValueError", "")
    assert exception_texts({}) == ("Exception: unknown", "")
