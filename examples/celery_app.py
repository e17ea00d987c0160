"""Celery: each attempt at a task is a trace of its own, with what it was called with, all it recorded, and its result.

One command shows it, with a broker in memory and a worker in the same process:

    python celery_app.py

With a broker of your own, workers are processes as usual, and the same command enqueues for them:

    export BROKER=redis://localhost TRIFLE_ARCHIVE=./traces
    celery -A celery_app worker
    python celery_app.py
    trifle-otel ls

It needs `pip install "trifle-otel[cli]" celery`, and `redis` for the second. Spans besides the archive come from the
usual `opentelemetry-instrument celery -A celery_app worker`, which needs no line about tracing in here at all.
"""

from __future__ import annotations

import os
import random
from typing import Any

from celery import Celery, chain
from celery.worker import state

import trifle_otel as trifle
from trifle_otel.integrations import celery
from trifle_otel.integrations.attempts import job_options

BROKER = os.environ.get("BROKER", "memory://")
RATES = {"EUR": 1.0, "USD": 1.08, "HUF": 391.0}

app: Any = Celery("shop", broker=BROKER)
app.conf.update(task_ignore_result=True, broker_connection_retry_on_startup=True, worker_redirect_stdouts=False)

archive = trifle.configure(os.environ.get("TRIFLE_ARCHIVE", "./traces"))
celery.instrument()


@app.task
def load(product: int) -> float:
    """What a product costs in euro."""
    trifle.tag(f"product:{product}")
    return trifle.trace("Loading the product", lambda: round(random.Random(product).uniform(10, 500), 2))


@app.task(bind=True, max_retries=3)
def convert(self: Any, euro: float, currency: str) -> float:
    """A price in another currency. The bank answers at the second try."""
    try:
        with trifle.block("Asking the bank") as step:
            if self.request.retries == 0:
                raise ConnectionError("the bank does not answer")
            rate = step.result(RATES[currency])
    except ConnectionError as error:
        raise self.retry(exc=error, countdown=0.1) from error
    return round(euro * rate, 2)


@app.task
@job_options(key="shop/publish", retention=30)
def publish(price: float, product: int) -> str:
    """The last step, whose traces are kept for a month under a key of their own."""
    trifle.trace(f"Product {product} costs {price}", head=True)
    return "published"


@app.task(bind=True, max_retries=None)
@job_options(trace=False)
def close(self: Any, published: int) -> None:
    """Ends the worker of this example, which runs in the process that enqueues, once so much is published."""
    trifle.flush()
    if len(archive.search(segment="shop/publish").records) < published:
        raise self.retry(countdown=0.2)
    state.should_stop = 0


def main() -> None:
    """Enqueue three prices; where the broker is this process's own memory, work on them, and show the traces."""
    before = len(archive.search(segment="shop/publish").records)
    for product in (9, 10, 11):
        chain(load.s(product), convert.s("HUF"), publish.s(product)).delay()
    if BROKER != "memory://":
        print("Enqueued. Workers take it from here: celery -A celery_app worker")
        return
    close.delay(before + 3)
    app.Worker(pool="solo", quiet=True, loglevel="ERROR", without_gossip=True, without_mingle=True).start()
    records = archive.search(limit=12).records[::-1]
    for record in records:
        print(
            record.reference,
            record.state.ljust(7),
            record.key.ljust(17),
            f"try {record.context['attempt']}",
            record.meta,
        )
    print("\nOne of them in full: trifle-otel show", records[3].reference)


if __name__ == "__main__":
    main()
