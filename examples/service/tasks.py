"""The worker of the example service: a Celery application, and one task. `run.py` starts it."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery

import trifle_otel as trifle
from trifle_otel.integrations import celery

FOLDER = os.environ.get("BROKER_FOLDER", "broker")
RATES = {"EUR": 1.0, "USD": 1.08, "HUF": 391.0}

app: Any = Celery("shop", broker=os.environ.get("BROKER", "filesystem://"))
app.conf.update(
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
    # a broker that is a folder: two processes can talk by it without any server
    broker_transport_options={"data_folder_in": FOLDER, "data_folder_out": FOLDER, "control_folder": FOLDER}
    if "BROKER" not in os.environ
    else {},
)
celery.instrument()  # `opentelemetry-instrument` does it too, where trifle-otel is installed; once more is no harm


@app.task(name="shop.price")
def price(product: int, currency: str) -> float:
    """Each attempt is a trace: `jobs/shop/price`, inside the span of OpenTelemetry's own instrumentation."""
    trifle.tag(f"product:{product}")
    with trifle.block("Asking the bank") as step:
        rate = step.result(RATES[currency])
    return round(12.5 * product * rate, 2)
