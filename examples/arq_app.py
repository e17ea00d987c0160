"""Arq: each try of a job is a trace of its own.

Arq needs a Redis; say where it is, and one command enqueues jobs, works them off, and shows their traces:

    REDIS_URL=redis://localhost python arq_app.py

In production workers run as ever, `arq arq_app.WorkerSettings`. The enqueuer's trace context travels in the job's
message, so that enqueuer and worker are one distributed trace where both are set up. It needs
`pip install "trifle-otel[cli]" arq`.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from arq import Retry, create_pool
from arq.connections import RedisSettings
from arq.worker import Worker

import trifle_otel as trifle
from trifle_otel.integrations import arq
from trifle_otel.integrations.attempts import job_options

RATES = {"EUR": 1.0, "USD": 1.08, "HUF": 391.0}
QUEUE = "trifle-example"

archive = trifle.configure(os.environ.get("TRIFLE_ARCHIVE", "./traces"))
arq.instrument()  # before workers are made, and where jobs are enqueued


@job_options(key="shop/price", retention=30)
async def price(ctx: dict[str, Any], product: int, currency: str) -> float:
    """A price in another currency. The bank answers at the second try."""
    trifle.tag(f"product:{product}")
    with trifle.block("Asking the bank") as step:
        if ctx["job_try"] == 1:
            raise Retry(defer=0.1)
        rate = step.result(RATES[currency])
    return round(12.5 * product * rate, 2)


class WorkerSettings:
    """What `arq arq_app.WorkerSettings` reads."""

    functions = (price,)
    queue_name = QUEUE
    redis_settings = RedisSettings.from_dsn(os.environ.get("REDIS_URL", "redis://localhost"))


async def main() -> None:
    """Enqueue, work all off, and show the traces."""
    redis = await create_pool(WorkerSettings.redis_settings, default_queue_name=QUEUE)
    with trifle.tracer("shop/campaign", meta={"products": [9, 10]}):  # spans of all traces are of one distributed trace
        for product in (9, 10):
            await redis.enqueue_job("price", product, "HUF")
    worker = Worker(
        WorkerSettings.functions, redis_pool=redis, queue_name=QUEUE, burst=True, handle_signals=False, poll_delay=0.1
    )
    await worker.main()
    await worker.close()
    records = archive.search(limit=5).records[::-1]
    for record in records:
        attempt = record.context.get("attempt", 1)
        print(record.reference, record.state.ljust(7), record.key.ljust(13), f"try {attempt}", record.meta)
    print("\nOne of them in full: trifle-otel show", records[-1].reference)


if __name__ == "__main__":
    if "REDIS_URL" not in os.environ:
        sys.exit("Arq needs a Redis. Say where it is: REDIS_URL=redis://localhost python arq_app.py")
    asyncio.run(main())
