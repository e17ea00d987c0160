"""Procrastinate: each attempt at a job is a trace of its own.

Procrastinate needs a PostgreSQL; say where it is, and one command makes its tables, enqueues jobs, works them off, and
shows their traces:

    DATABASE_URL=postgresql://localhost/shop python procrastinate_app.py

In production workers run as ever, `procrastinate --app=procrastinate_app.app worker`. A job has no place for a trace
context, so that enqueuer and worker are two distributed traces. It needs
`pip install "trifle-otel[cli]" procrastinate`.
"""

from __future__ import annotations

import asyncio
import os
import sys

from procrastinate import App, PsycopgConnector, RetryStrategy

import trifle_otel as trifle
from trifle_otel.integrations import procrastinate
from trifle_otel.integrations.attempts import job_options

RATES = {"EUR": 1.0, "USD": 1.08, "HUF": 391.0}

app = App(connector=PsycopgConnector(conninfo=os.environ.get("DATABASE_URL", "")))
archive = trifle.configure(os.environ.get("TRIFLE_ARCHIVE", "./traces"))
procrastinate.instrument()  # before workers are made

asked: set[int] = set()  # products that the bank was asked for before


@app.task(name="shop.price", retry=RetryStrategy(max_attempts=3))
async def price(product: int, currency: str) -> float:
    """A price in another currency. The bank answers at the second try."""
    trifle.tag(f"product:{product}")
    with trifle.block("Asking the bank") as step:
        if product not in asked:
            asked.add(product)
            raise ConnectionError("the bank does not answer")
        rate = step.result(RATES[currency])
    return round(12.5 * product * rate, 2)


@app.task(name="shop.publish")
@job_options(key="shop/publish", retention=30)
def publish(product: int) -> str:
    """A plain function, which runs in a thread; its traces are kept for a month under a key of their own."""
    trifle.trace(f"Product {product} is on sale", head=True)
    return "published"


async def main() -> None:
    """Enqueue, work all off, and show the traces."""
    async with app.open_async():
        if not await app.check_connection_async():
            await app.schema_manager.apply_schema_async()
        await price.defer_async(product=9, currency="HUF")
        await publish.defer_async(product=9)
        await app.run_worker_async(wait=False, install_signal_handlers=False)
    records = archive.search(limit=3).records[::-1]
    for record in records:
        attempt = record.context["attempt"]
        print(record.reference, record.state.ljust(7), record.key.ljust(15), f"try {attempt}", record.meta)
    print("\nOne of them in full: trifle-otel show", records[0].reference)


if __name__ == "__main__":
    if "DATABASE_URL" not in os.environ:
        sys.exit(
            "Procrastinate needs a PostgreSQL. Say where it is:"
            " DATABASE_URL=postgresql://localhost/shop python procrastinate_app.py"
        )
    asyncio.run(main())
