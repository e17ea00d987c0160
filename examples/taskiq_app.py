"""Taskiq: each attempt at a task is a trace of its own, and the enqueuer's trace context travels in its labels.

One command shows it, with a broker in memory that runs tasks in the same process:

    python taskiq_app.py

With a broker of your own nothing else changes: workers load the module that makes it, with
`taskiq worker taskiq_app:broker`, so that both sides are set up by it. It needs
`pip install "trifle-otel[cli]" taskiq`.
"""

from __future__ import annotations

import asyncio
import os

from taskiq import InMemoryBroker, SimpleRetryMiddleware

import trifle_otel as trifle
from trifle_otel.integrations import taskiq
from trifle_otel.integrations.attempts import job_options

RATES = {"EUR": 1.0, "USD": 1.08, "HUF": 391.0}

broker = InMemoryBroker().with_middlewares(SimpleRetryMiddleware())
archive = trifle.configure(os.environ.get("TRIFLE_ARCHIVE", "./traces"))
taskiq.instrument()

asked: set[int] = set()  # products that the bank was asked for before


@broker.task(task_name="shop:price", retry_on_error=True)
async def price(product: int, currency: str) -> float:
    """A price in another currency. The bank answers at the second try."""
    trifle.tag(f"product:{product}")
    with trifle.block("Asking the bank") as step:
        if product not in asked:
            asked.add(product)
            raise ConnectionError("the bank does not answer")
        rate = step.result(RATES[currency])
    return round(12.5 * product * rate, 2)


@broker.task(task_name="shop:publish")
@job_options(key="shop/publish", retention=30)
def publish(product: int, amount: float) -> str:
    """A plain function, which runs in a thread; its traces are kept for a month under a key of their own."""
    trifle.trace(f"Product {product} costs {amount}", head=True)
    return "published"


async def main() -> None:
    """Enqueue and wait, and show the traces."""
    await broker.startup()
    with trifle.tracer("shop/campaign", meta={"products": [9, 10]}):  # spans of all traces are of one distributed trace
        for product in (9, 10):
            amount = (await (await price.kiq(product, "HUF")).wait_result()).return_value
            await (await publish.kiq(product, amount)).wait_result()
    await broker.shutdown()
    records = archive.search(limit=7).records[::-1]
    for record in records:
        attempt = record.context.get("attempt", 1)
        print(record.reference, record.state.ljust(7), record.key.ljust(15), f"try {attempt}", record.meta)
    print("\nOne of them in full: trifle-otel show", records[1].reference)


if __name__ == "__main__":
    asyncio.run(main())
