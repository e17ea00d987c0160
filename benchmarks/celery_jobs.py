"""Celery's jobs for `frameworks`."""

from __future__ import annotations

from typing import Any

from celery import Celery

from benchmarks import framework_jobs as jobs

app: Any = Celery("benchmark", broker=jobs.BROKER or None)
app.conf.update(
    task_default_queue=jobs.QUEUE or "celery",
    task_ignore_result=True,
    worker_enable_remote_control=False,
    broker_connection_retry_on_startup=True,
)
if jobs.TRACED:
    from trifle_otel.integrations import celery

    celery.instrument(select=lambda job: job.name == "empty")


@app.task(name="empty")
def empty() -> None:
    """See `framework_jobs`."""
    jobs.empty()


@app.task(name="begin")
def begin() -> None:
    """See `framework_jobs`."""
    jobs.begin()


@app.task(name="report")
def report() -> None:
    """See `framework_jobs`."""
    jobs.report()
