"""Flask, and any other WSGI application: each request is a trace of its own, named by the rule that serves it.

    python flask_app.py

asks the application four times, and shows the traces; `flask --app flask_app run` serves it as usual. It needs
`pip install "trifle-otel[cli]" flask`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

from flask import Flask, Response

import trifle_otel as trifle
from trifle_otel.integrations import logging as trifle_logging
from trifle_otel.integrations.wsgi import TraceMiddleware, flask_route

archive = trifle.configure(os.environ.get("TRIFLE_ARCHIVE", "./traces"))
trifle_logging.instrument(level=logging.INFO)  # what is logged during a request is a line of its trace

app = Flask("shop")
app.wsgi_app = TraceMiddleware(  # type: ignore[method-assign]
    app.wsgi_app, route=flask_route(app), select=lambda request: request.path != "/health"
)


@app.get("/health")
def health() -> str:
    """Not traced."""
    return "well"


@app.get("/prices/<int:product>")
def price(product: int) -> str:
    """The key of its trace is `http/GET/prices/<int:product>`; path, query and parameters are in the meta."""
    trifle.tag(f"product:{product}")
    if product > 100:
        raise LookupError(f"no product {product}")  # Flask logs it with its traceback, and answers 500
    return str(trifle.trace("Loading the price", lambda: 12.5 * product))


@app.get("/catalogue")
def catalogue() -> Response:
    """What is streamed is part of the trace, to its end."""

    def lines() -> Iterator[str]:
        for product in (9, 10):
            trifle.trace(f"Product {product}")
            yield f"{product}\n"

    return Response(lines())


def main() -> None:
    """Ask the application, and show the traces."""
    with app.test_client() as client:
        for path in ("/health", "/prices/9", "/prices/900", "/catalogue"):
            answer = client.get(path, buffered=True)
            print(answer.status_code, answer.text.strip()[:40])
    records = archive.search(limit=3).records[::-1]
    for record in records:
        print(record.reference, record.state.ljust(7), record.key.ljust(30), record.meta["path"])
    print("\nOne of them in full: trifle-otel show", records[1].reference)


if __name__ == "__main__":
    main()
