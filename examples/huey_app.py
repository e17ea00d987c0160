"""Huey: each attempt at a task is a trace of its own, in threads, processes, greenlets, and where it is called.

One command shows it, with a queue in memory and a consumer in the same process:

    python huey_app.py

With a Redis of your own, consumers are processes as usual, and the same command enqueues for them:

    export REDIS_URL=redis://localhost TRIFLE_ARCHIVE=./traces
    huey_consumer huey_app.huey
    python huey_app.py
    trifle-otel ls

It needs `pip install "trifle-otel[cli]" huey`, and `redis` for the second.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from huey import MemoryHuey, RedisHuey
from huey.exceptions import RetryTask

import trifle_otel as trifle
from trifle_otel.integrations import huey as tracing
from trifle_otel.integrations.attempts import job_options

REDIS_URL = os.environ.get("REDIS_URL")
RATES = {"EUR": 1.0, "USD": 1.08, "HUF": 391.0}

archive = trifle.configure(os.environ.get("TRIFLE_ARCHIVE", "./traces"))
tracing.instrument()

huey: Any = RedisHuey("shop", url=REDIS_URL) if REDIS_URL else MemoryHuey("shop")

asked: set[int] = set()  # products that the bank was asked for before


@huey.task()
def price(product: int, currency: str) -> float:
    """A price in another currency. The bank answers at the second try."""
    trifle.tag(f"product:{product}")
    with trifle.block("Asking the bank") as step:
        if product not in asked:
            asked.add(product)
            raise RetryTask("the bank does not answer")
        rate = step.result(RATES[currency])
    return round(12.5 * product * rate, 2)


@huey.task()
@job_options(key="shop/publish", retention=30)
def publish(product: int, amount: float) -> str:
    """The last step, whose traces are kept for a month under a key of their own."""
    trifle.trace(f"Product {product} costs {amount}", head=True)
    return "published"


def main() -> None:
    """Enqueue; where the queue is this process's own memory, work on it, and show the traces."""
    with trifle.tracer("shop/campaign", meta={"products": [9, 10]}):  # spans of all traces are of one distributed trace
        results = [huey.enqueue(price.s(product, "HUF").then(publish, product)) for product in (9, 10)]
    if REDIS_URL:
        print("Enqueued. Consumers take it from here: huey_consumer huey_app.huey")
        return
    consumer = huey.create_consumer(workers=1, periodic=False)
    consumer.start()
    for _, published in results:
        published.get(blocking=True, timeout=10)
    consumer.stop(graceful=True)
    records = archive.search(limit=7).records[::-1]
    for record in records:
        attempt = record.context.get("attempt", 1)
        print(record.reference, record.state.ljust(7), record.key.ljust(19), f"try {attempt}", record.meta)
    print("\nOne of them in full: trifle-otel show", records[-1].reference)


if __name__ == "__main__":
    import_module("huey_app").main()  # consumers know tasks by the name of their module, which is none here
