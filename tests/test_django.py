"""Django's requests and tasks as traces, and the setting that says which."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.conf import settings
from django.core.management import call_command
from django.test import AsyncClient, Client, RequestFactory, override_settings
from django.urls import clear_url_caches
from django.utils.functional import empty
from opentelemetry.context import get_current
from opentelemetry.instrumentation.django import DjangoInstrumentor
from opentelemetry.trace import SpanKind
from spans import Sdk, attributes, parent_id, span_id, tree

import trifle_otel as trifle
from trifle_otel import Archive, TraceRecord
from trifle_otel.cli import main
from trifle_otel.cli.rerun import Call, send
from trifle_otel.errors import ConfigurationError, UsageError
from trifle_otel.integrations import django as integration
from trifle_otel.integrations.django import tasks
from trifle_otel.integrations.django.options import given
from trifle_otel.runtime import runtime
from trifle_otel.settings import Settings

MIDDLEWARE = "trifle_otel.integrations.django.TraceMiddleware"
MANAGED = {  # the settings of a whole project
    "ALLOWED_HOSTS": ["*"],
    "SECRET_KEY": "of tests",
    "USE_TZ": True,
    "ROOT_URLCONF": "django_project",
    "LOGGING_CONFIG": None,
    "INSTALLED_APPS": ["django_tasks", "django_tasks_db", "trifle_otel.integrations.django"],
    "MIDDLEWARE": [MIDDLEWARE],
    "TRIFLE": {"archive": "memory:"},
    "DATABASES": {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
}


def backends() -> dict[str, Any]:
    """The setting TASKS, of Django's own tasks where it has them, else of the backport."""
    library = "django.tasks" if find_spec("django.tasks") is not None else "django_tasks"
    return {
        "default": {"BACKEND": f"{library}.backends.immediate.ImmediateBackend"},
        "dummy": {"BACKEND": f"{library}.backends.dummy.DummyBackend"},
        "stored": {"BACKEND": "django_tasks_db.DatabaseBackend"},
    }


@pytest.fixture(scope="module")
def project() -> Iterator[Any]:
    """A Django project, in this process for these tests alone."""
    settings.configure(**MANAGED, TASKS=backends())
    apps.populate(settings.INSTALLED_APPS)
    import django_project

    yield django_project
    integration.uninstrument()
    apps.app_configs.clear()
    apps.apps_ready = apps.models_ready = apps.loading = apps.ready = False
    apps.clear_cache()
    settings._wrapped = empty  # pyright: ignore[reportAttributeAccessIssue]
    clear_url_caches()
    del sys.modules["django_project"]


@pytest.fixture
def archive(project: Any) -> Archive:
    """An archive in memory that this process records into."""
    return trifle.configure("memory:")


def records(archive: Archive) -> list[TraceRecord]:
    """All traces, the oldest first."""
    assert trifle.flush(5)
    return archive.search().records[::-1]


def messages(archive: Archive, record: TraceRecord) -> list[str]:
    """A trace's lines but the first."""
    return [entry.message for entry in archive.entries(record)][1:]


def traces(archive: Archive) -> dict[str, list[str]]:
    """The lines of each trace, by its key."""
    return {record.key: messages(archive, record) for record in records(archive)}


def client() -> Any:
    """A client that gets a 500 like anybody else; with middlewares of its own."""
    return Client(raise_request_exception=False)


def ask(path: str, **headers: str) -> Any:
    """The answer to a GET in an asynchronous stack, its body taken."""

    async def asking() -> Any:
        answer = await AsyncClient(raise_request_exception=False).get(path, headers=headers or None)
        if answer.streaming:
            answer.content_in_parts = [part async for part in answer]
        return answer

    return asyncio.run(asking())


# -- requests


def test_a_request_is_a_trace_of_its_route(archive: Archive) -> None:
    """The key is the route's template, the path and the parameters are in the meta."""
    assert client().get("/orders/7/?full=1", headers={"user-agent": "test"}).content == b"7"
    assert traces(archive) == {"http/GET/orders/<int:number>": ["order 7", "Response 200"]}
    meta = records(archive)[0].meta
    assert (meta["path"], meta["query"], meta["route"]) == ("/orders/7/", "full=1", "/orders/<int:number>/")
    assert (meta["method"], meta["parameters"], meta["client"]) == ("GET", {"number": 7}, "127.0.0.1")
    assert trifle.current() is None
    assert runtime().troubles.counts == {}


def test_an_asynchronous_stack_gives_the_same(archive: Archive) -> None:
    """With views that are coroutines and with such that run in a thread."""
    assert ask("/async/orders/7/").content == b"7"
    assert ask("/orders/7/").content == b"7"
    assert traces(archive) == {
        "http/GET/async/orders/<int:number>": ["order 7", "Response 200"],
        "http/GET/orders/<int:number>": ["order 7", "Response 200"],
    }
    assert runtime().troubles.counts == {}


@pytest.mark.parametrize(
    "path, key, parameters",
    [
        ("/shop/rings/items/3", "http/GET/shop/<slug:shop>/items/<int:number>", {"shop": "rings", "number": 3}),
        ("/articles/2024/", "http/GET/articles/<number>", {"number": "2024"}),
        ("/pages/7/", "http/GET/pages/<var>", {"0": "7"}),
        ("/", "http/GET", None),
        ("/nothing/7", "http/GET", None),
    ],
)
def test_keys_are_templates(archive: Archive, path: str, key: str, parameters: Any) -> None:
    """Whole ones, of regular expressions too; whatever is asked for, the number of keys stays small."""
    client().get(path)
    (record,) = records(archive)
    assert (record.key, record.state, record.meta.get("parameters")) == (key, "success", parameters)


@pytest.mark.parametrize("path", ["/raises/error", "/async/raises"])
@pytest.mark.parametrize("is_async", [False, True])
def test_what_a_view_raises_is_recorded(archive: Archive, path: str, is_async: bool) -> None:
    """Django makes an answer of it before a middleware sees it; the trace has the exception and its traceback."""
    answer = ask(path) if is_async else client().get(path)
    assert answer.status_code == 500
    (record,) = records(archive)
    found = messages(archive, record)
    assert (record.state, found[:2]) == ("error", ["Response 500", "Exception: no rate"])
    assert "in raises" in found[2] or "in async_raises" in found[2]
    assert trifle.current() is None


def test_exceptions_that_are_answers(archive: Archive) -> None:
    """A 404 and a 403 are no failures; what was raised is a line."""
    assert client().get("/raises/missing").status_code == 404
    assert client().get("/raises/forbidden").status_code == 403
    assert [record.state for record in records(archive)] == ["success", "success"]
    assert [messages(archive, record) for record in records(archive)] == [
        ["Response 404", "Http404: no order 7"],
        ["Response 403", "PermissionDenied: not yours"],
    ]


@pytest.mark.parametrize("is_async", [False, True])
def test_what_another_middleware_raises_is_recorded(archive: Archive, is_async: bool) -> None:
    """No hook of a middleware sees that, but Django says so by a signal."""
    with override_settings(MIDDLEWARE=[MIDDLEWARE, "django_project.FailingMiddleware"]):
        answer = ask("/orders/7/") if is_async else client().get("/orders/7/")
    assert answer.status_code == 500
    (record,) = records(archive)
    assert (record.state, messages(archive, record)[:2]) == ("error", ["Response 500", "Exception: no session"])


def test_what_another_middleware_forgives_is_no_failure(archive: Archive) -> None:
    """The answer decides; what was raised is a line where we stand inside of that middleware."""
    with override_settings(MIDDLEWARE=["django_project.ForgivingMiddleware", MIDDLEWARE]):
        assert client().get("/raises/error").content == b"never mind"
    (record,) = records(archive)
    assert (record.state, messages(archive, record)) == ("success", ["Response 200", "ValueError: no rate"])


def test_exceptions_that_django_lets_through(archive: Archive) -> None:
    """They pass unmodified."""
    with override_settings(DEBUG_PROPAGATE_EXCEPTIONS=True), pytest.raises(ValueError, match="no rate"):
        client().get("/raises/error")
    assert traces(archive)["http/GET/raises/<str:which>"][0] == "Exception: no rate"
    assert trifle.current() is None


@pytest.mark.parametrize("path", ["/stream", "/async/stream"])
def test_a_stream_is_recorded_to_its_end(archive: Archive, path: str) -> None:
    """Each part is made in the trace, and in the block that the body has opened; between parts it is not current."""
    if path == "/stream":
        answer: Any = client().get(path)
        parts = iter(answer.streaming_content)
        first = next(parts)
        assert trifle.current() is None
        assert [first, *parts] == [b"0\n", b"1\n", b"2\n"]
        answer.close()
    else:
        assert ask(path).content_in_parts == [b"0\n", b"1\n", b"2\n"]
    (record,) = records(archive)
    assert (record.key, record.state) == (f"http/GET{path}", "success")
    assert tree(archive.entries(record)) == [
        "Response 200",
        "the parts",
        "  part 0",
        "  part 1",
        "  part 2",
        "  = None",
        "closed",
    ]
    assert runtime().troubles.counts == {}


def test_a_stream_that_nobody_wants_any_more(archive: Archive) -> None:
    """A client that goes away ends the trace, and what the body does about it is in it."""
    before = get_current()
    answer: Any = client().get("/stream")
    next(iter(answer.streaming_content))
    answer.close()
    assert tree(archive.entries(records(archive)[0])) == [
        "Response 200",
        "the parts",
        "  part 0",
        "  = None",
        "closed",
    ]
    assert get_current() is before


def test_a_stream_that_fails(archive: Archive) -> None:
    """What its body raises passes, and is the trace's."""
    answer: Any = client().get("/broken")
    with pytest.raises(ValueError, match="no rate"):
        list(answer.streaming_content)
    answer.close()
    (record,) = records(archive)
    assert (record.state, messages(archive, record)[:2]) == ("error", ["Response 200", "Exception: no rate"])


@pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume synchronous iterators:Warning")
def test_a_plain_stream_in_an_asynchronous_stack(archive: Archive) -> None:
    """Django takes all of it in a thread."""
    assert ask("/stream").content_in_parts == [b"0\n", b"1\n", b"2\n"]
    assert tree(archive.entries(records(archive)[0]))[-1] == "closed"


def test_a_file_stays_one_that_the_server_can_send(archive: Archive) -> None:
    """Its trace ends when it is closed."""
    factory = RequestFactory()
    import django_project

    answer: Any = integration.TraceMiddleware(lambda request: django_project.file(request))(factory.get("/file"))
    assert answer.file_to_stream.read() == b"content"
    assert trifle.current() is None
    assert records(archive) == []
    answer.close()
    assert traces(archive) == {"http/GET/file": ["Response 200"]}


def test_a_client_that_goes_away_before_the_answer(archive: Archive, project: Any) -> None:
    """The view is cancelled, and the trace closed; that is no failure."""

    async def run() -> None:
        project.waiting = asyncio.Event()
        request = asyncio.ensure_future(AsyncClient().get("/endless"))
        await project.waiting.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request

    asyncio.run(run())
    (record,) = records(archive)
    assert (record.state, messages(archive, record)) == ("warning", ["waiting", "Cancelled: the client went away"])


def test_a_client_that_goes_away_in_the_middle_of_a_stream(archive: Archive, project: Any) -> None:
    """What waits for more is cancelled; that is how streams of events end, and no failure."""

    async def take(answer: Any) -> None:
        async for _ in answer:
            pass

    async def run() -> None:
        project.waiting = asyncio.Event()
        answer: Any = await AsyncClient().get("/events")
        taking = asyncio.ensure_future(take(answer))
        await project.waiting.wait()
        taking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await taking
        answer.close()

    asyncio.run(run())
    (record,) = records(archive)
    assert (record.state, messages(archive, record)) == (
        "warning",
        ["Response 200", "an event", "Cancelled: the client went away"],
    )
    assert runtime().troubles.counts == {}


def test_requests_at_once_do_not_meet(archive: Archive) -> None:
    """Each has its own trace, however they are interleaved."""

    async def run() -> None:
        one = AsyncClient()
        await asyncio.gather(*(one.get(f"/async/orders/{number}/") for number in range(5)))

    asyncio.run(run())
    found = [messages(archive, record) for record in records(archive)]
    assert sorted(found) == [[f"order {number}", "Response 200"] for number in range(5)]


def test_the_servers_span_takes_the_callers_context(project: Any) -> None:
    """One distributed trace joins caller and service, where no other instrumentation does that."""
    sdk = Sdk().configure()
    client().get("/orders/7/", headers={"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"})
    assert parent_id(sdk.root) == "b7ad6b7169203331"
    assert sdk.root.kind is SpanKind.SERVER
    found = attributes(sdk.root)
    assert (found["http.request.method"], found["http.route"]) == ("GET", "/orders/<int:number>/")


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("path", ["/orders/7/", "/raises/error"])
def test_inside_of_opentelemetrys_own_instrumentation(project: Any, path: str, is_async: bool) -> None:
    """Its middleware is put first, whenever it is installed: our span is a child of its span, and ends before it."""
    sdk = Sdk().configure()
    with override_settings(MIDDLEWARE=[MIDDLEWARE]):
        DjangoInstrumentor().instrument(tracer_provider=sdk.provider)
        try:
            answer = ask(path) if is_async else client().get(path)
        finally:
            DjangoInstrumentor().uninstrument()
    assert answer.status_code == (200 if path == "/orders/7/" else 500)
    (theirs,) = [span for span in sdk.spans if span.kind is SpanKind.SERVER]
    assert parent_id(sdk.root) == span_id(theirs)
    assert sdk.root.kind is SpanKind.INTERNAL
    assert sdk.root.end_time is not None
    assert theirs.end_time is not None
    assert sdk.root.end_time <= theirs.end_time


def test_without_configuration_requests_pass(project: Any) -> None:
    """Neither an archive nor an SDK: the middleware is not there."""
    assert client().get("/orders/7/").content == b"7"
    assert ask("/async/stream").content_in_parts == [b"0\n", b"1\n", b"2\n"]


# -- the setting


def test_requests_are_chosen_and_named_by_the_setting(archive: Archive) -> None:
    """Callables are given by their dotted paths."""
    chosen = {"select": "django_project.wanted", "key": "django_project.web_key", "mode": "deferred"}
    with override_settings(TRIFLE=chosen):
        client().get("/orders/7/")
        client().get("/stream")
    (record,) = records(archive)
    assert (record.key, record.segments[0]) == ("web/orders/<int:number>", "web")


def test_the_app_configures_the_process(project: Any, tmp_path: Path) -> None:
    """All settings of `configure` are allowed, callables by their dotted paths; those of requests are left out."""
    chosen = {
        "archive": str(tmp_path / "traces"),
        "retention": 3,
        "serializer": "builtins.len",
        "select": "django_project.wanted",
        "tasks": {"select": "django_project.fast_jobs"},
    }
    with override_settings(TRIFLE=chosen):
        apps.get_app_config("trifle_otel").ready()
    found = runtime().settings
    assert (found.archive, found.retention) == (chosen["archive"], 3)
    assert found.serializer is len  # type: ignore[comparison-overlap]
    project.price.enqueue(1)
    project.price.enqueue(2, fast=True)
    with Archive.open(tmp_path / "traces") as archive:
        assert [record.meta["args"] for record in records(archive)] == [[2]]
    with override_settings(TRIFLE={"archive": "memory:"}):
        apps.get_app_config("trifle_otel").ready()


def test_tasks_can_be_left_alone(project: Any) -> None:
    """`"tasks": False`: the app does not touch them."""
    integration.uninstrument()
    with override_settings(TRIFLE={"archive": "memory:", "tasks": False}):
        apps.get_app_config("trifle_otel").ready()
    project.price.enqueue(1)
    assert runtime().sink is not None
    assert records(trifle.Archive.open("memory:")) == []
    with override_settings(TRIFLE={"archive": "memory:"}):
        apps.get_app_config("trifle_otel").ready()


@pytest.mark.parametrize(
    "chosen, said",
    [
        ({"archiv": "./traces"}, "no setting 'archiv' in TRIFLE; allowed are archive, bump_every"),
        ({"tasks": {"queue": "x"}}, r"no setting 'queue' in TRIFLE\[\"tasks\"\]; allowed are key, mode, retention"),
        ({"tasks": 7}, r"TRIFLE\[\"tasks\"\] is 7; it must be a dictionary"),
        ({"mode": "alive"}, r"TRIFLE\[\"mode\"\] is 'alive'; it is live or deferred"),
        ({"select": "django_project.nothing"}, r"TRIFLE\[\"select\"\] is 'django_project.nothing', which cannot be"),
        ({"select": "everything"}, r"TRIFLE\[\"select\"\] is 'everything'; it must be callable"),
        ({"key": "web"}, r"TRIFLE\[\"key\"\] is 'web'; it must be callable"),
        ("./traces", r"TRIFLE is './traces'; it must be a dictionary"),
    ],
)
def test_wrong_settings_are_errors_that_name_what_is_allowed(project: Any, chosen: Any, said: str) -> None:
    """At start, of the app and of the middleware alike."""
    with override_settings(TRIFLE=chosen):
        with pytest.raises(ConfigurationError, match=said):
            apps.get_app_config("trifle_otel").ready()
        with pytest.raises(ConfigurationError, match=said):
            client().get("/")


def test_every_setting_of_configure_is_allowed(project: Any) -> None:
    """What `Settings` gets is allowed here from then on."""
    every = {name: getattr(Settings(), name) for name in Settings.__dataclass_fields__}
    with override_settings(TRIFLE=every):
        assert given().settings == every


# -- tasks


def test_a_task_is_a_trace(archive: Archive, project: Any) -> None:
    """A plain function, a coroutine, and one that is told of its attempt: arguments, identity and result."""
    assert project.price.enqueue(7, fast=True).return_value == 14
    assert project.async_price.enqueue(8).return_value == 16
    assert project.with_context.enqueue(9).return_value == "9, attempt 1"
    first, second, third = records(archive)
    assert (first.key, first.meta) == ("jobs/django_project/price", {"args": [7], "kwargs": {"fast": True}})
    known = {name: first.context[name] for name in ("job_system", "job_name", "queue", "attempt", "backend")}
    assert known == {
        "job_system": "django",
        "job_name": "django_project.price",
        "queue": "default",
        "attempt": 1,
        "backend": "default",
    }
    assert first.context["job_id"] in first.tags
    assert messages(archive, first) == ["pricing", "14"]
    assert (second.meta, messages(archive, second)) == ([8], ["pricing", "16"])
    assert (third.meta, messages(archive, third)) == ([9], ["'9, attempt 1'"])
    assert trifle.current() is None


def test_a_task_that_fails(archive: Archive, project: Any) -> None:
    """The exception is the trace's and Django's."""
    result = project.failing.enqueue()
    assert (result.status, result.errors[0].exception_class) == ("FAILED", ValueError)
    (record,) = records(archive)
    assert (record.state, messages(archive, record)[0]) == ("error", "Exception: no rate")


def test_a_plain_call_is_no_attempt(archive: Archive, project: Any) -> None:
    """What nobody enqueued is part of what runs; what a task enqueues is its child."""
    assert project.price.call(1) == 2
    assert records(archive) == []
    assert project.calling.enqueue().return_value == 2
    outer, inner = sorted(records(archive), key=lambda record: record.key)
    assert (outer.key, messages(archive, outer)) == ("jobs/django_project/calling", ["pricing", "2"])
    assert (inner.meta, messages(archive, inner)) == ([2], ["pricing", "4"])
    assert inner.context["parent_id"] == inner.context["root_id"] == outer.context["job_id"]


def test_options_of_one_task(archive: Archive, project: Any) -> None:
    """A decorator below Django's says whether, under which key and for how long."""
    project.untraced.enqueue()
    project.nightly.enqueue()
    (record,) = records(archive)
    assert (record.key, record.retention) == ("prices/nightly", 90)


def test_a_task_that_is_run_at_once_is_part_of_its_request(project: Any) -> None:
    """The enqueuer's context is there: one distributed trace."""
    sdk = Sdk().configure()
    assert client().get("/enqueues").content == b"14"
    request, job = sdk.named("http/GET/enqueues"), sdk.named("jobs/django_project/price")
    assert parent_id(job) == span_id(request)
    assert job.kind is SpanKind.INTERNAL


def test_a_task_alone_is_a_consumer(project: Any) -> None:
    """Its span has the attributes of the conventions."""
    sdk = Sdk().configure()
    result = project.price.enqueue(7)
    found = attributes(sdk.root)
    assert sdk.root.kind is SpanKind.CONSUMER
    assert (found["messaging.system"], found["messaging.message.id"]) == ("django", result.id)


def test_a_dummy_backend_runs_nothing(archive: Archive, project: Any) -> None:
    """And leaves nothing behind."""
    project.never.enqueue(7)
    assert records(archive) == []
    assert len(tasks._announced) == 0


@pytest.fixture
def database(project: Any) -> None:
    """The table of the backend that keeps tasks in the database, empty."""
    from django_tasks_db.models import DBTaskResult

    call_command("migrate", verbosity=0)
    DBTaskResult.objects.all().delete()


def test_a_worker_of_the_database_backend(archive: Archive, project: Any, database: None) -> None:
    """The job's id, its worker and its arguments are those of its row."""
    from django_tasks_db.management.commands.db_worker import Worker

    result = project.stored.enqueue(7, fast=True)
    failing = project.failing.using(backend="stored").enqueue()
    context = project.with_context.using(backend="stored").enqueue(3)
    assert records(archive) == []
    worker = Worker(
        queue_names=["default"],
        interval=0,
        batch=True,
        backend_name="stored",
        startup_delay=False,
        max_tasks=None,
        worker_id="worker-1",
        excluded_queue_names=[],
    )
    worker.run()
    found = {record.context["job_id"]: record for record in records(archive)}
    assert set(found) == {result.id, failing.id, context.id}
    record = found[result.id]
    assert (record.key, record.meta) == ("jobs/django_project/price", {"args": [7], "kwargs": {"fast": True}})
    assert (record.context["worker_id"], record.context["backend"]) == ("worker-1", "stored")
    assert messages(archive, record) == ["pricing", "14"]
    assert found[failing.id].state == "error"
    assert messages(archive, found[context.id]) == ["'3, attempt 1'"]


def test_a_worker_of_coroutines(archive: Archive, project: Any, database: None) -> None:
    """Its signals come from threads: each call finds the job of its arguments; cancelled ones are closed."""
    results = [project.async_price.using(backend="stored").enqueue(number) for number in range(4)]

    async def run(result: Any) -> Any:
        await tasks._installed()[0][1].task_started.asend(None, task_result=result)
        return await result.task.acall(*result.args, **result.kwargs)

    async def run_all() -> list[Any]:
        return await asyncio.gather(*map(run, reversed(results)))

    assert asyncio.run(run_all()) == [6, 4, 2, 0]
    assert {record.context["job_id"]: record.meta for record in records(archive)} == {
        result.id: [number] for number, result in enumerate(results)
    }
    assert len(tasks._announced) == 0


def test_taken_back(archive: Archive, project: Any) -> None:
    """After `uninstrument` nothing is traced, and nothing of ours is left."""
    theirs = [vars(job)["call"] for job, _ in tasks._installed()]
    integration.uninstrument()
    before = [vars(job)["call"] for job, _ in tasks._installed()]
    project.price.enqueue(1)
    assert records(archive) == []
    assert all(ours.__wrapped__ is plain for ours, plain in zip(theirs, before, strict=True))
    integration.instrument(retention=5)
    project.price.enqueue(1)
    assert [record.retention for record in records(archive)] == [5]
    integration.instrument()


WITHOUT = """
import sys
from trifle_otel.errors import MissingDependency
from trifle_otel.integrations.instrumentors import DjangoInstrumentor
sys.modules.update({"django.tasks": None, "django_tasks": None})
DjangoInstrumentor().instrument()
try:
    import trifle_otel.integrations.django
    trifle_otel.integrations.django.instrument()
except MissingDependency as error:
    print(error)
for name in [name for name in sys.modules if name.partition(".")[0] == "django" or "integrations.django" in name]:
    del sys.modules[name]
sys.modules["django"] = None
DjangoInstrumentor().instrument()
try:
    import trifle_otel.integrations.django
except MissingDependency as error:
    print(error)
"""


def test_what_is_missing_is_named() -> None:
    """Without tasks, and without Django at all; what sets up everything that is installed leaves both alone."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], env=environment, check=True, timeout=30, capture_output=True, text=True
    )
    assert [line.partition(": ")[0] for line in done.stdout.splitlines()] == [
        "tracing Django's tasks needs Django 6, or its backport",
        "tracing Django needs Django",
    ]
    assert "could not instrument" not in done.stderr


# -- real processes

PROGRAM = """
import os, sys, time
from django.conf import settings
settings.configure(
    SECRET_KEY="of tests",
    USE_TZ=True,
    INSTALLED_APPS=["django_tasks", "django_tasks_db", "trifle_otel.integrations.django"],
    TASKS={"default": {"BACKEND": "django_tasks_db.DatabaseBackend"}},
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "db.sqlite"}},
    TRIFLE={"archive": "archive", "bump_every": 0.1},
)
"""
JOBS = (
    PROGRAM
    + """
import trifle_otel as trifle
from importlib import import_module
from importlib.util import find_spec
task = import_module("django.tasks" if find_spec("django.tasks") else "django_tasks").task

@task()
def quick(number):
    trifle.trace("quick")
    return number + 1

@task()
def hangs():
    trifle.trace("hanging")
    time.sleep(60)
"""
)
ENQUEUE = (
    PROGRAM
    + """
import django
django.setup()
from django.core.management import call_command
call_command("migrate", verbosity=0)
import jobs
for number in range(3):
    jobs.quick.enqueue(number)
jobs.hangs.enqueue()
"""
)
WORK = (
    PROGRAM
    + """
from django.core.management import execute_from_command_line
execute_from_command_line(["manage.py", "db_worker", "--interval", "0", "--no-startup-delay", "--worker-id", "w"])
"""
)


@pytest.mark.fault
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_is_killed_leaves_closed_traces(own_folder: Path, kind: signal.Signals) -> None:
    """What it had done is durable; the job that it was in the middle of is an error, with its lines."""
    (own_folder / "jobs.py").write_text(JOBS.replace(PROGRAM, "import time\n"))
    root = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": f"{own_folder}:{root}"}
    subprocess.run([sys.executable, "-c", ENQUEUE], env=environment, check=True, timeout=30)
    worker = subprocess.Popen([sys.executable, "-c", WORK], env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    with Archive.open("archive") as archive:
        while not archive.search(segment="jobs/jobs/hangs").records and time.monotonic() < deadline:
            time.sleep(0.05)  # another process's state can only be polled
    # The first SIGTERM lets the job run to its end, the second ends it; but the worker takes two for one where the
    # second comes before it has noted the first.
    deadline = time.monotonic() + 30
    while worker.poll() is None and time.monotonic() < deadline:
        worker.send_signal(kind)
        with suppress(subprocess.TimeoutExpired):
            worker.wait(1)
    assert worker.poll() is not None
    with Archive.open("archive") as archive:
        archive.recover()
        found = archive.search().records[::-1]
        assert [(record.key, record.state) for record in found] == [
            *[("jobs/jobs/quick", "success")] * 3,
            ("jobs/jobs/hangs", "error"),
        ]
        assert messages(archive, found[0]) == ["quick", "1"]
        assert messages(archive, found[3])[0] == "hanging"


@pytest.mark.parametrize("job, arguments", [("price", "7, fast=True"), ("async_price", "7"), ("with_context", "7")])
def test_a_task_can_be_sent_again(
    archive: Archive, project: Any, job: str, arguments: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the task itself, whatever was named to set Django up."""
    trifle.configure("./traces")
    eval(f"task.enqueue({arguments})", {"task": getattr(project, job)})  # noqa: S307 - the call is the test's own
    assert trifle.flush(5)
    with Archive.open("./traces") as stored:
        (record,) = stored.search().records
    assert main(["rerun", record.reference]) == 0
    assert capsys.readouterr().out == f"django_project.{job}({arguments})\n"
    assert main(["rerun", record.reference, "--enqueue", "--app", "django_project:urlpatterns"]) == 0
    assert capsys.readouterr().out.startswith(f"Enqueued django_project.{job} as ")
    assert trifle.flush(5)
    with Archive.open("./traces") as stored:
        again, before = stored.search().records
    assert (again.key, again.meta) == (before.key, before.meta)
    assert again.context["job_id"] != before.context["job_id"]
    assert messages(stored, again) == messages(stored, before)


def test_a_task_that_is_no_more_is_not_sent(project: Any) -> None:
    """It is said, as wrong use."""
    with pytest.raises(UsageError, match=r"Django knows no task django_project\.gone"):
        send(Call("django", "django_project.gone", [], {}, "default"), None)
