"""Programs that know nothing of tracing, under `opentelemetry-instrument`: their frameworks are set up without code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from trifle_otel import Archive

ROOT = Path(__file__).parent.parent
PROGRAM = """
import asyncio, logging
from datetime import datetime, timezone
from importlib import import_module
from importlib.util import find_spec

# APScheduler
from apscheduler.executors.debug import DebugExecutor
from apscheduler.schedulers.background import BackgroundScheduler

def tick(number):
    logging.getLogger("shop").warning("tick %d", number)

scheduler = BackgroundScheduler(executors={"default": DebugExecutor()})
scheduler.start(paused=True)
job = scheduler.add_job(tick, args=(1,))
scheduler._executors["default"].submit_job(job, [datetime.now(timezone.utc)])

# Taskiq
import taskiq
broker = taskiq.InMemoryBroker()

@broker.task(task_name="shop:price")
async def price(number):
    return number * 2

async def taskiq_runs():
    await (await price.kiq(7)).wait_result()

asyncio.run(taskiq_runs())

# Procrastinate
import procrastinate
from procrastinate.testing import InMemoryConnector
app = procrastinate.App(connector=InMemoryConnector())

@app.task(name="shop.mail")
def mail(to):
    return to.upper()

async def procrastinate_runs():
    async with app.open_async():
        await mail.defer_async(to="a@example.org")
        await app.run_worker_async(wait=False, install_signal_handlers=False)

asyncio.run(procrastinate_runs())

# Django's tasks
task = import_module("django.tasks" if find_spec("django.tasks") else "django_tasks").task

@task()
def report(day):
    return f"report of {day}"

report.enqueue("Monday")

# Arq has no broker in memory
from arq.worker import Worker
print(hasattr(Worker.__init__, "__wrapped__"))
"""
JOBS = {
    "jobs/__main__/tick": ["shop: tick 1"],
    "jobs/shop/price": ["14"],
    "jobs/shop/mail": ["'A@EXAMPLE.ORG'"],
    "jobs/__main__/report": ["'report of Monday'"],
}


def installed(folder: Path) -> Path:
    """A folder that tells of our entry points as an installation does: the tests may run from the sources."""
    text = (ROOT / "pyproject.toml").read_text()
    group = re.search(r"\[project\.entry-points\.opentelemetry_instrumentor\]\n.*?\n\n", text, re.DOTALL)
    assert group is not None
    points = re.sub(r'"', "", group[0].replace("project.entry-points.", ""))
    information = folder / "trifle_otel-0.1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: trifle-otel\nVersion: 0.1.0\n")
    (information / "entry_points.txt").write_text(points)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("disabled", ["", "trifle_taskiq"])
def test_each_framework_is_set_up(tmp_path: Path, disabled: str) -> None:
    """Jobs of four frameworks are archived, log records in them; each can be left out by OpenTelemetry's variable."""
    (tmp_path / "shop_settings.py").write_text("")
    environment = {
        "PATH": str(Path(sys.executable).parent),
        "PYTHONPATH": f"{installed(tmp_path / 'packages')}:{ROOT}:{tmp_path}",
        "TRIFLE_ARCHIVE": str(tmp_path / "archive"),
        "DJANGO_SETTINGS_MODULE": "shop_settings",
        "OTEL_TRACES_EXPORTER": "none",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": disabled,
    }
    command = [f"{Path(sys.executable).parent}/opentelemetry-instrument", sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True"], "Arq's worker is not patched"
    assert "could not instrument" not in done.stderr
    with Archive.open(tmp_path / "archive") as archive:
        found = {
            record.key: [entry.message for entry in archive.entries(record)][1:] for record in archive.search().records
        }
    assert found == {key: lines for key, lines in JOBS.items() if not (disabled and key == "jobs/shop/price")}
