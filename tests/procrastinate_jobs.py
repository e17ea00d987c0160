"""Jobs that Procrastinate's workers run in tests: `python -m procrastinate --app procrastinate_jobs.app worker`.

JOBS_BROKER    URL of the PostgreSQL that they take jobs from
JOBS_FOLDER    where jobs leave files that say how far they are
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from procrastinate import App, PsycopgConnector

import trifle_otel as trifle
from trifle_otel.integrations import procrastinate as ours

app = App(connector=PsycopgConnector(conninfo=os.environ["JOBS_BROKER"]))
ours.instrument()


@app.task(name="procrastinate_jobs.hangs")
def hangs(seconds: float) -> str:
    """A job that takes long, and says what it does before."""
    with trifle.block("waiting"):
        trifle.trace("inside")
        time.sleep(1.3)  # a running trace is flushed after a second
        Path(os.environ["JOBS_FOLDER"], "hangs").touch()
        time.sleep(seconds)
    return "done"
