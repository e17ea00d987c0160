"""Dramatiq: each attempt at a message is a trace of its own, with what middlewares do before and after the actor.

One command shows it, with a broker in memory and a worker in the same process:

    python dramatiq_app.py

With a broker of your own, workers are processes as usual, and the same command sends messages to them:

    export REDIS_URL=redis://localhost TRIFLE_ARCHIVE=./traces
    dramatiq dramatiq_app
    python dramatiq_app.py
    trifle-otel ls

It needs `pip install "trifle-otel[cli]" dramatiq`, and `redis` for the second.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

import dramatiq
from dramatiq.brokers.stub import StubBroker

import trifle_otel as trifle
from trifle_otel.integrations import dramatiq as tracing
from trifle_otel.integrations.attempts import job_options

REDIS_URL = os.environ.get("REDIS_URL")
RATES = {"EUR": 1.0, "USD": 1.08, "HUF": 391.0}

archive = trifle.configure(os.environ.get("TRIFLE_ARCHIVE", "./traces"))
tracing.instrument()

if REDIS_URL:
    from dramatiq.brokers.redis import RedisBroker

    broker: Any = RedisBroker(url=REDIS_URL)
else:
    broker = StubBroker()
dramatiq.set_broker(broker)

asked: set[int] = set()  # products that the bank was asked for before


@dramatiq.actor(max_retries=3)
def price(product: int, currency: str) -> float:
    """A price in another currency. The bank answers at the second try."""
    trifle.tag(f"product:{product}")
    with trifle.block("Asking the bank") as step:
        if product not in asked:
            asked.add(product)
            raise dramatiq.Retry("the bank does not answer", delay=100)
        rate = step.result(RATES[currency])
    return round(12.5 * product * rate, 2)


@dramatiq.actor
@job_options(key="shop/publish", retention=30)
def publish(product: int, amount: float) -> None:
    """The last step, whose traces are kept for a month under a key of their own."""
    trifle.trace(f"Product {product} costs {amount}", head=True)


def main() -> None:
    """Send messages; where the broker is this process's own memory, work on them, and show the traces."""
    for product in (9, 10):
        dramatiq.pipeline([price.message(product, "HUF"), publish.message_with_options(args=(product,))]).run()
    if REDIS_URL:
        print("Sent. Workers take it from here: dramatiq dramatiq_app")
        return
    worker = dramatiq.Worker(broker, worker_timeout=100, worker_threads=1)
    worker.start()
    broker.join("default")
    worker.join()
    worker.stop()
    records = archive.search(limit=6).records[::-1]
    for record in records:
        attempt = record.context["attempt"]
        print(record.reference, record.state.ljust(7), record.key.ljust(23), f"try {attempt}", record.meta)
    print("\nOne of them in full: trifle-otel show", records[-1].reference)


if __name__ == "__main__":
    import_module("dramatiq_app").main()  # keys are made of the name of the actors' module, which is none here
