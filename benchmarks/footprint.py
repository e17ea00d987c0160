"""What a process pays beside time: memory of a long trace and of a large result, and what `import trifle_otel` costs.

Each figure is measured in fresh processes. Memory is the growth of what the process had resident at most
beyond what it had after a small trace and, of a result, beyond the value that is the job's own.
Imports are measured in CPU time, which a busy machine falsifies less.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import process_time
from typing import Any

from benchmarks.harness import Row, peak_memory

ROOT = Path(__file__).resolve().parent.parent
LINES = 1_000_000
RESULT = 50_000_000
"""Bytes of a large result."""
MOST_LINES = 100.0
MOST_IMPORT = 40.0
"""Milliseconds beyond the import of `opentelemetry.trace`."""
SERIALIZERS = ("repr", "str", "json")
VALUES: dict[str, Callable[[], str]] = {
    "result": lambda: "a" * RESULT,
    "secret": lambda: "a" * RESULT + " password=hunter2",
}
"""Results, by what is measured."""


def rows(folder: Path, rounds: int) -> Iterator[Row]:
    """All figures of this module; archives are made in `folder`."""
    yield _imports(rounds)
    for sampled in (False, True):
        grown = grown_by("lines", folder / f"lines-{sampled}", sampled=sampled)
        all_of_it = grown_by("held", folder / "held")
        what = f"a live trace of {LINES:,} lines, {'span records' if sampled else 'span sampled out'}, memory"
        yield Row(what, grown, "MB", "held in a list", all_of_it, grown / all_of_it, highest=MOST_LINES)
    size = RESULT / 1e6
    for what, holding in (("result", ""), ("secret", " that holds a secret")):
        for serializer in SERIALIZERS:
            grown = grown_by(what, folder / f"{what}-{serializer}", serializer=serializer)
            told = f"a result of 50 MB{holding}, serializer {serializer}, memory"
            yield Row(told, grown, "MB", "its size", size, grown / size, most=2.2)


def _imports(rounds: int) -> Row:
    costs = [_import_cost() for _ in range(rounds)]
    ours, api = (statistics.median(cost[side] for cost in costs) for side in (0, 1))
    ratio = statistics.median(first / second for first, second in costs)
    return Row("import trifle_otel, CPU", ours, "ms", "import opentelemetry.trace", api, ratio, highest=MOST_IMPORT)


def _import_cost() -> tuple[float, float]:
    code = (
        "from time import process_time\n"
        "start = process_time()\n"
        "import opentelemetry.trace\n"
        "between = process_time()\n"
        "import trifle_otel\n"
        "print((process_time() - between) * 1e3, (between - start) * 1e3)"
    )
    ours, api = map(float, _output([sys.executable, "-c", code]).split())
    return ours, api


def grown_by(what: str, folder: Path, *, sampled: bool = False, serializer: str = "repr") -> float:
    """Megabytes that a process of its own grows by."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.footprint", what, str(folder), "--serializer", serializer]
    answer: dict[str, float] = json.loads(_output([*command, "--sampled"] if sampled else command))
    print(f"  {what} {folder.name}: {answer}", file=sys.stderr)
    return answer["grown"]


def _output(command: list[str]) -> str:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("TRIFLE_", "OTEL_"))}
    return subprocess.run(command, cwd=ROOT, env=plain, stdout=subprocess.PIPE, check=True, text=True).stdout


def _lines(trifle: Any) -> None:
    with trifle.tracer("benchmark/lines", mode="live"):
        for number in range(LINES):
            trifle.trace(f"Freight to zone {number}: 24.80 EUR")
    assert trifle.flush(120)


def _held(trifle: Any) -> None:
    del trifle
    lines = [(process_time(), f"Freight to zone {number}: 24.80 EUR") for number in range(LINES)]
    assert lines


def _result(trifle: Any) -> None:
    with trifle.tracer("benchmark/result", mode="deferred"):
        trifle.trace("Loading the page", lambda: _VALUE[0])
    assert trifle.flush(120)


_VALUE: list[str] = []


def main() -> None:
    """One measurement in this process, as JSON: what `rows` starts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("lines", "held", *VALUES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--serializer", default="repr")
    parser.add_argument("--sampled", action="store_true")
    given = parser.parse_args()

    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON

    import trifle_otel as trifle

    provider = TracerProvider(sampler=ALWAYS_ON if given.sampled else ALWAYS_OFF, shutdown_on_exit=False)
    trifle.configure(given.folder, serializer=given.serializer, tracer_provider=provider)
    with trifle.tracer("benchmark/small"):
        trifle.trace("Loading the page", lambda: "a" * 100_000)
    assert trifle.flush(60)
    if given.what in VALUES:
        _VALUE.append(VALUES[given.what]())
    before = _resident()
    {"lines": _lines, "held": _held}.get(given.what, _result)(trifle)
    print(json.dumps({"grown": (peak_memory() - before) / 1e6}))


def _resident() -> int:
    """Bytes that this process has resident now; where the system does not tell, the most that it ever had."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return peak_memory()
    return pages * resource.getpagesize()


if __name__ == "__main__":
    main()
