"""Metrics, collected by the real SDK: of the jobs, and of what becomes of their traces."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from trifle_otel.conventions import METRICS

README = Path(__file__).parents[1] / "README.md"

SCRIPT = """
import json
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
import trifle_otel as trifle
from trifle_otel import runtime
from trifle_otel.errors import StoreUnavailable

trifle.configure("./traces")
reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))  # after configure: it must not matter
for number in range(3):
    with trifle.tracer("jobs/one"):
        if number == 2:
            trifle.fail()
assert trifle.flush(5)
sink = runtime.runtime().sink
take = sink.archive.store.take
def down(folder, local):
    raise StoreUnavailable("down")
sink.archive.store.take = down
with trifle.tracer("jobs/two"):
    trifle.trace("x" * 100)
assert not trifle.flush(0.3)
found = {}
for resource in reader.get_metrics_data().resource_metrics:
    for scope in resource.scope_metrics:
        assert scope.scope.name == "trifle_otel"
        for metric in scope.metrics:
            for point in metric.data.data_points:
                labels = ",".join(str(value) for value in dict(point.attributes).values())
                value = getattr(point, "value", None)
                found[f"{metric.name}[{labels}]"] = point.count if value is None else value
            assert metric.unit and metric.description
sink.archive.store.take = take
assert trifle.flush(5)
print(json.dumps(found))
"""


AGAIN = """
import gc, json
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
import trifle_otel as trifle
from trifle_otel import runtime
from trifle_otel.errors import StoreUnavailable

def down(*_):
    raise StoreUnavailable("down")

reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))
for folder in ("./first", "./second"):
    trifle.configure(folder)
gc.collect()
store = runtime.runtime().sink.archive.store
take, rename = store.take, store.rename
store.take = store.rename = down
with trifle.tracer("a/job"):
    pass
assert not trifle.flush(0.3)
found = [
    (metric.name, point.value)
    for resource in reader.get_metrics_data().resource_metrics
    for scope in resource.scope_metrics
    for metric in scope.metrics
    for point in metric.data.data_points
    if "waiting" in metric.name
]
store.take, store.rename = take, rename
assert trifle.flush(5)
print(json.dumps(found))
"""


def test_what_waits_is_measured_after_configuring_again() -> None:
    """A meter gives the gauges that it has, with the callback that they were made with first."""
    import json

    done = subprocess.run([sys.executable, "-c", AGAIN], capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    found = dict(json.loads(done.stdout))
    assert found["trifle.waiting"] == 1
    assert found["trifle.waiting.bytes"] > 100
    assert found["trifle.waiting.age"] > 0.1


def test_jobs_and_shipping_are_measured() -> None:
    """Traces, entries and durations by key and state; what was shipped, what waits, what went wrong."""
    import json

    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["trifle.traces[jobs/one,success]"] == 2
    assert found["trifle.traces[jobs/one,error]"] == 1
    assert found["trifle.duration[jobs/one,success]"] == 2
    assert found["trifle.entries[jobs/one]"] == 3
    assert found["trifle.entries[jobs/two]"] == 2
    assert found["trifle.shipped[]"] == 3
    assert found["trifle.waiting[]"] == 1
    assert found["trifle.waiting.bytes[]"] > 100
    assert found["trifle.waiting.age[]"] > 0.1
    assert found["trifle.problems[the archive cannot be written; traces wait]"] >= 1


def test_the_readme_names_every_metric() -> None:
    """Its table has the names and descriptions that are sent."""
    rows = re.findall(
        r"^\| `(trifle\.[a-z.]+)` \| (?:counter|gauge|histogram), `\S+` \| (.+) \|$", README.read_text(), re.MULTILINE
    )
    assert dict(rows) == METRICS
