"""A plain script, as cron runs it: one decorator makes each run a trace.

    python cron_script.py

shows what was recorded. A crontab needs an archive that does not depend on the folder:

    15 3 * * *  TRIFLE_ARCHIVE=/var/traces /usr/bin/python3 /srv/shop/cron_script.py

Scripts that nobody wants to change, and programs in other languages, are traced from outside, with their arguments,
exit code and output: `trifle-otel run -- python old_script.py`. It needs `pip install "trifle-otel[cli]"`.
"""

from __future__ import annotations

import os
import sys

import trifle_otel as trifle


@trifle.block("Reading the orders of the day")
def read_orders(path: str) -> list[dict[str, float]]:
    """A function as a block: what it returns is the block's result."""
    trifle.trace(f"from {path}")
    return [{"number": 1, "total": 19.9}, {"number": 2, "total": -3.0}, {"number": 3, "total": 120.0}]


@trifle.tracer("cron/daily_totals", retention=90, tags=["daily"])
def daily_totals(path: str) -> float:
    """The whole run as a trace, which is kept for 90 days. An exception would be part of it, and pass."""
    total = 0.0
    for order in read_orders(path):
        if order["total"] < 0:
            trifle.trace(f"Order {order['number']:.0f} is negative: left out", state="warning")
            trifle.warn()
            continue
        total += order["total"]
    trifle.artifact("totals.csv", f"total\n{total}\n")
    return total


def main() -> None:
    """Run, and show the trace. What ends the script waits for what is still to be shipped, by default 5 seconds."""
    archive = trifle.configure(os.environ.get("TRIFLE_ARCHIVE", "./traces"))
    daily_totals(sys.argv[1] if len(sys.argv) > 1 else "orders.csv")
    (record,) = archive.search(segment="cron/daily_totals", limit=1).records
    print(record.reference, record.state, record.key)
    for entry in archive.entries(record):
        print("  " * entry.level, entry.message)


if __name__ == "__main__":
    main()
