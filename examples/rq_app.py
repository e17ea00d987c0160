"""RQ: each attempt at a job is a trace of its own, recorded in the work-horse that runs it.

RQ needs a Redis; say where it is, and one command enqueues jobs, works them off with RQ's usual worker, and shows their
traces:

    REDIS_URL=redis://localhost python rq_app.py

In production the worker reads its settings from a module that sets up tracing, this one, say:

    rq worker --config rq_app trifle-example

or knows nothing of it at all: `opentelemetry-instrument rq worker trifle-example`. It needs
`pip install "trifle-otel[cli]" rq`.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module

from redis import Redis
from rq import Queue, Retry, Worker

import trifle_otel as trifle
from trifle_otel.integrations import rq
from trifle_otel.integrations.attempts import job_options

REDIS_URL = os.environ.get("REDIS_URL", "redis://localhost")
RATES = {"EUR": 1.0, "USD": 1.08, "HUF": 391.0}

archive = trifle.configure(os.environ.get("TRIFLE_ARCHIVE", "./traces"))
rq.instrument()  # in the module that the worker imports, before it starts work-horses


def price(product: int, currency: str) -> float:
    """A price in another currency. The bank knows no pengő, however often it is asked."""
    trifle.tag(f"product:{product}")
    with trifle.block("Asking the bank") as step:
        rate = step.result(RATES[currency])
    return round(12.5 * product * rate, 2)


@job_options(key="shop/publish", retention=30)
def publish(product: int) -> str:
    """Its traces are kept for a month under a key of their own."""
    trifle.trace(f"Product {product} is on sale", head=True)
    return "published"


def main() -> None:
    """Enqueue, work all off, and show the traces."""
    queue = Queue("trifle-example", connection=Redis.from_url(REDIS_URL))
    with trifle.tracer("shop/campaign", meta={"products": [9, 10]}):  # spans of all traces are of one distributed trace
        queue.enqueue(price, 9, "HUF")
        queue.enqueue(price, 10, "HUP", retry=Retry(max=1))
        queue.enqueue(publish, 9)
    Worker([queue], connection=queue.connection).work(burst=True, logging_level="CRITICAL")
    trifle.flush()
    archive.recover()  # what work-horses leave behind; a worker that runs on does it by itself
    records = archive.search(limit=5).records[::-1]
    for record in records:
        attempt = record.context.get("attempt", 1)
        print(record.reference, record.state.ljust(7), record.key.ljust(17), f"try {attempt}", record.meta)
    print("\nOne of them in full: trifle-otel show", records[1].reference)


if __name__ == "__main__":
    if "REDIS_URL" not in os.environ:
        sys.exit("RQ needs a Redis. Say where it is: REDIS_URL=redis://localhost python rq_app.py")
    import_module("rq_app").main()  # work-horses know jobs by the name of their module, which is none here
