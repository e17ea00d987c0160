"""RQ's jobs for `frameworks`, and the settings that `rq worker --config` reads from here."""

from __future__ import annotations

from typing import Any

from rq import Queue, Worker
from rq.job import Job

from benchmarks import framework_jobs as jobs

REDIS_URL = jobs.BROKER
QUEUES = [jobs.QUEUE]

if jobs.TRACED:
    from trifle_otel.integrations import rq

    rq.instrument(select=lambda job: job.name.endswith(".empty"))


def empty() -> None:
    """See `framework_jobs`."""
    jobs.empty()


def begin() -> None:
    """See `framework_jobs`."""
    jobs.begin()


def report() -> None:
    """See `framework_jobs`."""
    jobs.report()


def nothing() -> None:
    """What a work-horse does where its worker does the measuring."""


class Forking(Worker):
    """RQ's usual worker, with a process for each job; the measuring is done here, in the one that starts them."""

    def execute_job(self, job: Job, queue: Queue) -> Any:
        """Do what a job of `framework_jobs` is to do in here, and have RQ run one that does nothing."""
        what = {"begin": jobs.begin, "empty": jobs.empty, "report": jobs.report}[
            (job.func_name or "").rpartition(".")[2]
        ]
        if what is not jobs.empty:
            job.func_name = f"{__name__}.nothing"
        what()
        super().execute_job(job, queue)
