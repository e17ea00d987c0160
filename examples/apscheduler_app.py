"""APScheduler 3: each run of a job is a trace of its own, in threads, coroutines and processes alike.

    python apscheduler_app.py

runs two jobs for a second, and shows their traces. It needs `pip install "trifle-otel[cli]" "apscheduler<4"`.
"""

from __future__ import annotations

import os
import time

from apscheduler.schedulers.background import BackgroundScheduler

import trifle_otel as trifle
from trifle_otel.integrations import apscheduler
from trifle_otel.integrations.attempts import Job, job_options

archive = trifle.configure(os.environ.get("TRIFLE_ARCHIVE", "./traces"))


def wanted(job: Job) -> bool:
    """What is traced: not the job that only says that we are alive."""
    return not job.name.endswith(".heartbeat")


apscheduler.instrument(select=wanted)


@job_options(key="shop/synchronise", retention=30)
def synchronise(shop: str) -> int:
    """A job like any other. Without the decorator its key would be `jobs/apscheduler_app/synchronise`."""
    with trifle.block(f"Asking {shop}") as step:
        orders = step.result([1, 2, 3])
    for order in orders:
        trifle.trace(f"Order {order}")
    if shop == "Graz":
        raise ConnectionError(f"{shop} does not answer")
    return len(orders)


def heartbeat() -> None:
    """Runs often, and nobody wants to read about it."""


def main() -> None:
    """Let jobs run for a second, and show the traces."""
    scheduler = BackgroundScheduler()
    scheduler.add_job(heartbeat, "interval", seconds=0.1)
    for shop in ("Wien", "Graz"):
        scheduler.add_job(synchronise, "interval", args=[shop], seconds=0.4, id=f"synchronise-{shop}")
    scheduler.start()
    time.sleep(1)
    scheduler.shutdown()
    records = archive.search(limit=4).records[::-1]
    for record in records:
        print(record.reference, record.state.ljust(7), record.key, record.meta, record.context["trigger"])
    print("\nOne of them in full: trifle-otel show", records[-1].reference)


if __name__ == "__main__":
    main()
