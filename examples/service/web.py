"""The web server of the example service: a FastAPI application that enqueues a task. `run.py` starts it."""

from __future__ import annotations

from fastapi import FastAPI
from tasks import price  # type: ignore[import-not-found]

import trifle_otel as trifle
from trifle_otel.integrations.asgi import TraceMiddleware

app = FastAPI()
app.add_middleware(TraceMiddleware)


@app.post("/orders/{product}")
def order(product: int, currency: str = "EUR") -> dict[str, str]:
    """Each request is a trace: `http/POST/orders/{product}`, inside the span of OpenTelemetry's own instrumentation."""
    trifle.tag(f"product:{product}")
    job = trifle.trace("Enqueueing", lambda: price.delay(product, currency).id)
    return {"job": job}
