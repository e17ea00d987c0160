"""Prefect, and whatever else has no integration of its own: Trifle's decorators below the framework's.

    python prefect_flow.py

runs the flow, and shows the trace. Without Prefect (`pip install prefect`) the same functions run as plain ones. It
needs `pip install "trifle-otel[cli]"`.

Where Prefect tries a flow again, each run of the function is a trace of its own. A task that Prefect runs in another
process (Dask, Ray, a work pool) is to be a trace of its own too: put `@trifle.tracer` on it instead of `@trifle.block`.
"""

from __future__ import annotations

import os
from typing import Any

import trifle_otel as trifle


def as_it_is(function: Any) -> Any:
    """What stands in for Prefect's decorators where it is not installed."""
    return function


try:
    from prefect import flow, task  # pyright: ignore[reportMissingImports]
except ModuleNotFoundError:
    flow = task = as_it_is


@task
@trifle.block("Loading the rates")
def load_rates(day: str) -> dict[str, float]:
    """A task is a block of its flow's trace; what it returns is the block's result."""
    trifle.trace(f"of {day}")
    return {"EUR": 1.0, "USD": 1.08, "HUF": 391.0}


@task
@trifle.block("Converting")
def convert(euro: float, rate: float) -> float:
    """A task."""
    return round(euro * rate, 2)


@flow
@trifle.tracer("flows/convert_prices")
def convert_prices(day: str, euro: float = 12.5) -> dict[str, float]:
    """A flow is a trace. `@flow` is the outer one, so that Prefect's own spans and retries are around it."""
    trifle.tag(f"day:{day}")
    return {currency: convert(euro, rate) for currency, rate in load_rates(day).items()}


def main() -> None:
    """Run the flow, and show the trace."""
    archive = trifle.configure(os.environ.get("TRIFLE_ARCHIVE", "./traces"))
    convert_prices("2026-06-30")
    (record,) = archive.search(segment="flows/convert_prices", limit=1).records
    print(record.reference, record.state, record.key)
    for entry in archive.entries(record):
        print("  " * entry.level, entry.message)


if __name__ == "__main__":
    main()
