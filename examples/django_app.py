"""Django in one file: each request and each task is a trace of its own, set up by Django's settings.

    python django_app.py

asks the application, and shows the traces; `python django_app.py runserver` serves it, like any project's manage.py. It
needs `pip install "trifle-otel[cli]" django`, and before Django 6 `django-tasks` for tasks. In a project of yours, the
three lines that are marked go into its settings.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import django
from django.conf import settings
from django.core.management import execute_from_command_line
from django.http import HttpRequest, HttpResponse
from django.urls import path

import trifle_otel as trifle
from trifle_otel.integrations.attempts import job_options
from trifle_otel.integrations.web import Request

TASKS = "django.tasks" if find_spec("django.tasks") else "django_tasks"


def wanted(request: Request) -> bool:
    """Which requests are traced: what a load balancer asks every second is not."""
    return request.path != "/health"


settings.configure(
    DEBUG=True,
    SECRET_KEY="an example has none",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    TASKS={"default": {"BACKEND": f"{TASKS}.backends.immediate.ImmediateBackend"}},
    INSTALLED_APPS=["trifle_otel.integrations.django"],  # <- configures this process, and has tasks traced
    MIDDLEWARE=["trifle_otel.integrations.django.TraceMiddleware"],  # <- has requests traced
    TRIFLE={  # <- all settings of `trifle_otel.configure`, and which requests are traced
        "archive": os.environ.get("TRIFLE_ARCHIVE", "./traces"),
        "select": wanted,  # or by its dotted path: "shop.tracing.wanted"
        "tasks": {"retention": 30},
    },
)
task: Any = import_module(TASKS).task


@task
def publish(product: int) -> str:
    """A task. Its worker, of whatever backend, records its attempts."""
    trifle.trace(f"Product {product} is on sale", head=True)
    return "published"


@task
@job_options(trace=False)
def tidy_up() -> None:
    """A task that is not traced."""


def health(_: HttpRequest) -> HttpResponse:
    """Not traced."""
    return HttpResponse(b"well")


def price(_: HttpRequest, product: int) -> HttpResponse:
    """The key of its trace is `http/GET/prices/<int:product>`; path, query and parameters are in the meta."""
    trifle.tag(f"product:{product}")
    if product > 100:
        raise LookupError(f"no product {product}")  # Django answers 500; the trace has the exception
    amount = trifle.trace("Loading the price", lambda: 12.5 * product)
    publish.enqueue(product)
    tidy_up.enqueue()
    return HttpResponse(str(amount).encode())


urlpatterns = [path("health", health), path("prices/<int:product>", price)]


def main() -> None:
    """Ask the application, and show the traces."""
    django.setup()
    from django.test import Client  # noqa: PLC0415 - after the settings are there

    client: Any = Client(raise_request_exception=False)
    for address in ("/health", "/prices/9", "/prices/900"):
        print(address, client.get(address).status_code)
    trifle.flush()  # an archive that is opened anew does not wait for what is still to be shipped
    with trifle.Archive.open(settings.TRIFLE["archive"]) as archive:
        records = archive.search(limit=3).records[::-1]
    for record in records:
        print(record.reference, record.state.ljust(7), record.key.ljust(30), f"{record.duration} ms")
    print("\nOne of them in full: trifle-otel show", records[-1].reference)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        execute_from_command_line(sys.argv)
    else:
        main()
