"""An attempt at a job as one trace: what all job frameworks have in common."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry import trace as otel
from opentelemetry.context import attach, detach, get_current
from opentelemetry.trace import SpanKind
from spans import Sdk, attributes, parent_id, span_id

import trifle_otel as trifle
from trifle_otel.integrations.attempts import (
    PARENT,
    ROOT,
    Job,
    Options,
    because,
    default_key,
    end,
    inject,
    job_options,
    running_job,
    start,
)
from trifle_otel.runtime import runtime

JOB = Job(
    system="rq", name="shop.tasks.price", args=(9, "EUR"), kwargs={"fast": True}, id="j1", queue="prices", attempt=2
)


@pytest.fixture
def sdk() -> Sdk:
    """A process that records spans, with an archive in memory."""
    return Sdk().configure()


def attempt(job: Job = JOB, options: Options | None = None) -> Any:
    """A started attempt."""
    started = start(job, options or Options())
    assert started is not None
    return started


def test_an_attempt_says_what_was_run_with_what(sdk: Sdk) -> None:
    """Key, arguments, tag and context come from the job, and what it returned is its result."""
    attempt().succeed(42.5)
    record = sdk.record
    assert record.key == "jobs/shop/tasks/price"
    assert record.meta == {"args": [9, "EUR"], "kwargs": {"fast": True}}
    assert record.tags == ("j1",)
    assert record.state == "success"
    expected = {"job_id": "j1", "job_name": "shop.tasks.price", "job_system": "rq", "queue": "prices", "attempt": 2}
    assert {name: record.context[name] for name in expected} == expected
    assert ":" in record.context["worker"]
    assert [(entry.type, entry.message) for entry in sdk.entries][1:] == [("raw", "42.5")]


def test_a_job_of_plain_arguments_has_them_as_its_meta(sdk: Sdk) -> None:
    """Without keyword arguments the meta is the list of arguments, as Trifle has it."""
    attempt(Job(system="rq", name="price", args=(9, 133554920))).succeed()
    assert sdk.record.meta == [9, 133554920]


@pytest.mark.parametrize(
    "args, exact",
    [
        (None, True),
        ((9, "EUR", -1.5, None, True), True),
        ([[1, [2]], {"a": {"b": ["ü", "\U0001f600"]}}], True),
        ((2**63 - 1, -(2**63)), True),
        ((2**63,), False),
        (((1, 2),), False),
        (([(1, 2)],), False),
        (({"a": (1, 2)},), False),
        (("a\0b",), False),
        (("\ud800",), False),
        (({"a\0b": 1},), False),
        (({"\udfff": 1},), False),
        (({1: 2},), False),
        ((float("inf"),), False),
        ((b"a",), False),
    ],
)
def test_a_trace_says_where_its_arguments_are_not_as_they_were(sdk: Sdk, args: Any, exact: bool) -> None:
    """What JSON gives back as something else would make another call of it; positional arguments are a tuple anyway."""
    attempt(Job(system="rq", name="price", args=args)).succeed()
    assert sdk.record.context.get("meta_exact", True) is exact
    if exact:
        assert sdk.record.meta == (None if args is None else list(args))


def test_keyword_arguments_count_as_well(sdk: Sdk) -> None:
    """They are part of the call."""
    attempt(Job(system="rq", name="price", kwargs={"sizes": (1, 2)})).succeed()
    assert sdk.record.context["meta_exact"] is False


@pytest.mark.parametrize(
    "end, argument, state, line",
    [
        ("retry", "in 3 s", "warning", "Retry: in 3 s"),
        ("ignore", None, "success", "Ignored"),
        ("reject", "requeued", "warning", "Rejected: requeued"),
        ("cancel", "revoked", "error", "Cancelled: revoked"),
        ("fail", None, "error", "The job failed"),
        ("fail", ValueError("no rate"), "error", "Exception: no rate"),
        ("expected", KeyError("product"), "warning", "Expected: KeyError: 'product'"),
    ],
)
def test_how_an_attempt_ended_is_said(sdk: Sdk, end: str, argument: Any, state: str, line: str) -> None:
    """Retries and rejects are warnings, not failures; what was ignored is neither."""
    getattr(attempt(), end)(argument)
    assert sdk.record.state == state
    assert line in [entry.message for entry in sdk.entries]


@pytest.mark.parametrize("end, state", [("retry", "warning"), ("cancel", "error")])
def test_an_attempt_that_is_broken_off_may_say_where(sdk: Sdk, end: str, state: str) -> None:
    """The traceback of what it was broken off for follows the line that says so."""
    try:
        raise ConnectionError("no answer")
    except ConnectionError as error:
        getattr(attempt(), end)("in 3 s", error)
    assert sdk.record.state == state
    line, traceback = list(sdk.entries)[1:]
    assert line.message.endswith(": in 3 s")
    assert (traceback.type, traceback.message.splitlines()[-1]) == ("raw", "ConnectionError: no answer")


def test_only_the_first_end_counts(sdk: Sdk) -> None:
    """A framework may call several of its hooks."""
    one = attempt()
    one.retry("later")
    one.fail(ValueError("no rate"))
    one.succeed(7)
    assert sdk.record.state == "warning"
    assert len(sdk.entries) == 2


def test_without_another_instrumentation_the_span_is_the_consumers(sdk: Sdk) -> None:
    """One distributed trace joins enqueuer and worker, and what was current before is current again."""
    headers: dict[str, Any] = {}
    with sdk.provider.get_tracer("web").start_as_current_span("enqueue") as enqueuer:
        inject(headers)
    before = get_current()
    one = attempt(Job(system="rq", name="price", id="j1", queue="prices", headers=headers))
    one.succeed()
    assert get_current() is before
    root = sdk.root
    assert root.kind is SpanKind.CONSUMER
    assert parent_id(root) == f"{enqueuer.get_span_context().span_id:016x}"
    assert attributes(root)["messaging.system"] == "rq"
    assert attributes(root)["messaging.destination.name"] == "prices"
    assert attributes(root)["messaging.message.id"] == "j1"


def test_inside_anothers_span_the_trace_is_its_child(sdk: Sdk) -> None:
    """The message's context is then that instrumentation's business, and so are the consumer's attributes."""
    headers = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    with sdk.provider.get_tracer("celery").start_as_current_span("run/price") as around:
        attempt(Job(system="celery", name="price", headers=headers)).succeed()
        assert otel.get_current_span() is around
    assert parent_id(sdk.root) == span_id(sdk.named("run/price"))
    assert sdk.root.kind is SpanKind.INTERNAL
    assert "messaging.system" not in attributes(sdk.root)


def test_a_context_that_is_there_is_not_put_in_again(sdk: Sdk) -> None:
    """Another instrumentation's header stays."""
    headers = {"traceparent": "theirs"}
    with sdk.provider.get_tracer("web").start_as_current_span("enqueue"):
        inject(headers)
    assert headers == {"traceparent": "theirs"}


def test_an_attempt_whose_end_cannot_be_found_out_is_ended(sdk: Sdk) -> None:
    """A framework that is not as we know it is no reason to leave a trace open; the fault is counted."""
    one = attempt()
    end(one, lambda: one.succeed(JOB.nothing_of_the_kind))  # type: ignore[attr-defined]
    assert trifle.current() is None
    assert sdk.record.state == "error"
    assert runtime().troubles.counts["how an attempt at a job ended could not be found out"] == 1


def test_a_message_names_the_job_that_sends_it(sdk: Sdk) -> None:
    """And the first of its workflow, through traces that lie between; for frameworks that do not say so themselves."""
    one = attempt(Job(system="rq", name="price", id="j2", root="j1"))
    headers: dict[str, Any] = {}
    with trifle.tracer("between", context={"job_id": "none of a framework"}):
        assert running_job() == ("j2", "j1")
        inject(headers, job_id="j3")
    one.succeed()
    assert (headers[PARENT], headers[ROOT]) == ("j2", "j1")
    assert "traceparent" in headers
    assert running_job() == (None, None)


def test_what_a_job_sends_of_itself_stays_as_it_is(sdk: Sdk) -> None:
    """A retry is no child of the attempt before it."""
    one = attempt()
    headers: dict[str, Any] = {}
    inject(headers, job_id="j1")
    one.retry()
    assert headers == {}


def test_what_a_job_left_running_still_names_it(sdk: Sdk) -> None:
    """A thread that it started, say; what is sent from elsewhere names no job."""
    one = attempt()
    kept = one.within
    one.succeed()
    headers: dict[str, Any] = {}
    inject(headers, job_id="j9")
    assert headers == {}
    token = attach(kept)
    inject(headers, job_id="j9")
    detach(token)
    assert headers[PARENT] == headers[ROOT] == "j1"


@pytest.mark.parametrize(
    "seconds, text", [(None, "ValueError: no rate"), (0, "ValueError: no rate"), (60, "in 60 s: ValueError: no rate")]
)
def test_why_a_job_is_tried_again(seconds: float | None, text: str) -> None:
    """Its exception, and the time until then where there is one."""
    assert because(ValueError("no rate"), seconds) == text


def test_options_choose_what_is_traced_and_how(sdk: Sdk) -> None:
    """A selector, a key, a mode and days for all jobs of a framework."""
    options = Options(
        select=lambda job: job.queue == "prices", key=lambda job: f"prices/{job.name}", mode="deferred", retention=30
    )
    assert start(Job(system="rq", name="mail", queue="mails"), options) is None
    attempt(Job(system="rq", name="one", queue="prices"), options).succeed()
    assert (sdk.record.key, sdk.record.retention) == ("prices/one", 30)
    assert attributes(sdk.root)["trifle.mode"] == "deferred"


def test_one_job_has_options_of_its_own(sdk: Sdk) -> None:
    """They come before those of the framework; what they leave open is the framework's."""

    @job_options(key="own/key")
    def price() -> None:
        """A job."""

    @job_options(trace=False)
    def secret() -> None:
        """A job that nobody is to see."""

    framework = Options(key="framework/key", retention=30)
    assert start(Job(system="rq", name="secret", function=secret), framework) is None
    attempt(Job(system="rq", name="price", function=price), framework).succeed()
    assert (sdk.record.key, sdk.record.retention) == ("own/key", 30)


def test_a_selector_that_raises_stops_no_job(sdk: Sdk) -> None:
    """The job runs untraced, and the fault is counted."""

    def select(job: Job) -> bool:
        raise LookupError(job.name)

    assert start(JOB, Options(select=select)) is None
    assert runtime().troubles.counts["an attempt at a job could not be traced"] == 1


def test_headers_that_are_none_stop_no_job(sdk: Sdk) -> None:
    """A message of somebody else's may hold anything."""
    attempt(Job(system="rq", name="price", headers={"traceparent": 7, "tracestate": None})).succeed()
    assert sdk.record.state == "success"


def test_without_configuration_nothing_is_started() -> None:
    """With neither an archive nor an SDK an attempt costs next to nothing."""
    assert start(JOB) is None


@pytest.mark.parametrize(
    "name, key",
    [
        ("shop.tasks.price", "jobs/shop/tasks/price"),
        ("price", "jobs/price"),
        ("shop.tasks:price", "jobs/shop/tasks/price"),
        ("shop.tasks.make.<locals>.price", "jobs/shop/tasks/make/price"),
        ("mail/send", "jobs/mail/send"),
    ],
)
def test_keys_are_paths_of_modules(name: str, key: str) -> None:
    """The default key of a job is made of its module's path and its name."""
    assert default_key(name) == key


def test_lines_of_the_job_are_in_its_attempt(sdk: Sdk) -> None:
    """Between start and end the attempt is the current trace."""
    one = attempt()
    trifle.trace("inside")
    assert trifle.current() is not None
    one.succeed()
    assert trifle.current() is None
    assert "inside" in [entry.message for entry in sdk.entries]
