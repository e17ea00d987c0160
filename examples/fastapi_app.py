"""FastAPI, and any other ASGI application: each request is a trace of its own, named by the route's template.

    python fastapi_app.py

asks the application three times, and shows the traces; `uvicorn fastapi_app:app` serves it as usual. It needs
`pip install "trifle-otel[cli]" fastapi httpx`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import httpx
from fastapi import FastAPI, HTTPException
from fastapi.responses import StreamingResponse

import trifle_otel as trifle
from trifle_otel.integrations.asgi import TraceMiddleware
from trifle_otel.integrations.web import Request

archive = trifle.configure(os.environ.get("TRIFLE_ARCHIVE", "./traces"))


def wanted(request: Request) -> bool:
    """Which requests are traced: what a load balancer asks every second is not."""
    return request.path != "/health"


app = FastAPI()
app.add_middleware(TraceMiddleware, select=wanted)


@app.get("/health")
async def health() -> str:
    """Not traced."""
    return "well"


@app.get("/prices/{product}")
async def price(product: int, currency: str = "EUR") -> dict[str, float]:
    """The key of its trace is `http/GET/prices/{product}`; path, query and parameters are in the meta."""
    trifle.tag(f"product:{product}")
    if currency != "EUR":
        trifle.warn()
        raise HTTPException(404, f"no rate for {currency}")
    return {"price": trifle.trace("Loading the price", lambda: 12.5 * product)}


@app.get("/catalogue")
async def catalogue() -> StreamingResponse:
    """What is streamed is part of the trace, to its end."""

    async def lines() -> AsyncIterator[str]:
        for product in (9, 10):
            trifle.trace(f"Product {product}")
            yield f"{product}\n"

    return StreamingResponse(lines())


async def main() -> None:
    """Ask the application, and show the traces."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop") as client:
        for path in ("/health", "/prices/9", "/prices/10?currency=HUF", "/catalogue"):
            print((await client.get(path)).text.strip())
    records = archive.search(limit=3).records[::-1]
    for record in records:
        print(record.reference, record.state.ljust(7), record.key.ljust(25), record.meta["path"])
    print("\nOne of them in full: trifle-otel show", records[0].reference)


if __name__ == "__main__":
    asyncio.run(main())
