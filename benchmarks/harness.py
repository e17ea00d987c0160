"""Measuring two things side by side, and the table that figures end up in.

What is measured lies in the other modules. A machine that others use as well is now fast, now slow, so that a
figure alone says little: here each round measures both sides within a few milliseconds, in changing order,
and the ratio is the median of the rounds' ratios. The garbage collector runs for both, as it does in a job; each
side begins with what was there before it frozen, so that none pays for another's objects.
"""

from __future__ import annotations

import gc
import logging
import os
import platform
import resource
import statistics
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from itertools import repeat
from pathlib import Path
from time import perf_counter

Timed = Callable[[int], float]
"""Does something a number of times; gives the seconds that this took, without what it needs before and after."""

MICROSECONDS = "µs"
RATE = "traces/s"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Medians over all rounds: microseconds for each call, and ours as a multiple of the peer's."""

    ours: float
    peer: float
    ratio: float


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table. `most` is the highest ratio that is good enough, `least` and `highest` bound our figure."""

    what: str
    ours: float
    unit: str
    peer: str
    theirs: float
    ratio: float
    most: float | None = None
    least: float | None = None
    highest: float | None = None

    @property
    def met(self) -> bool:
        """Whether the targets are reached; also where there are none."""
        return (
            (self.most is None or self.ratio <= self.most)
            and (self.least is None or self.ours >= self.least)
            and (self.highest is None or self.ours <= self.highest)
        )


def compare(ours: Timed, peer: Timed, *, count: int, rounds: int) -> Comparison:
    """Measure both alternately, `rounds` times `count` calls."""
    ours(count)
    peer(count)
    gc.collect()
    gc.freeze()
    samples = []
    for number in range(rounds):
        if number % 2:
            second, first = _sample(peer, count), _sample(ours, count)
        else:
            first, second = _sample(ours, count), _sample(peer, count)
        samples.append((first, second))
    gc.unfreeze()
    return Comparison(
        ours=statistics.median(first for first, _ in samples) / count * 1e6,
        peer=statistics.median(second for _, second in samples) / count * 1e6,
        ratio=statistics.median(first / second for first, second in samples),
    )


def _sample(timed: Timed, count: int) -> float:
    gc.collect(1)
    return timed(count)


def logger_to_nowhere() -> logging.Logger:
    """A logger that formats each message with the time, and writes it to the null device."""
    logger = logging.getLogger("benchmarks.nowhere")
    if not logger.handlers:
        handler = logging.StreamHandler(open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - open to the end
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    return logger


def logging_cost(rounds: int = 15, count: int = 500) -> float:
    """Microseconds that `logging.info` takes here and now: what tells how fast a machine is."""
    info = logger_to_nowhere().info
    samples = []
    for _ in range(rounds):
        start = perf_counter()
        for _ in repeat(None, count):
            info("Freight to zone 2: 24.80 EUR")
        samples.append((perf_counter() - start) / count)
    return statistics.median(samples) * 1e6


def peak_memory() -> int:
    """Bytes that this process had resident at most.

    Not `ru_maxrss` where it can be helped: on Linux that begins with the size of the process that started this one.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    (peak,) = [line.split()[1] for line in status if line.startswith("VmHWM:")]
    return int(peak) * 1024


def machine(logging_us: float) -> str:
    """When and on what this was measured, in one line."""
    day = datetime.now(timezone.utc).date()
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return (
        f"{day}, {platform.system()} {platform.machine()}, {_processor()}, {os.cpu_count()} cores, {python}, "
        f"OpenTelemetry {version('opentelemetry-api')} (API) and {version('opentelemetry-sdk')} (SDK); "
        f"`logging.info` with a formatted time to {os.devnull}: {logging_us:.1f} µs"
    )


def _processor() -> str:
    """The processor's name, as Linux tells it; elsewhere what Python knows, which may be nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "an unknown processor"


def table(rows: Iterable[Row], *, markdown: bool) -> str:
    """The figures as a table, for the terminal or for the README."""
    head = ("what", "ours", "compared with", "that", "ratio", "target", "")
    cells = [head, *(_cells(row) for row in rows)]
    if markdown:
        cells.insert(1, ("---", "---:", "---", "---:", "---:", "---:", "---"))
        return "\n".join("| " + " | ".join(line) + " |" for line in cells)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = (1, 3, 4, 5)
    return "\n".join(
        "  ".join(
            cell.rjust(width) if at in right else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    )


def _cells(row: Row) -> tuple[str, ...]:
    targets = []
    if row.most is not None:
        targets.append(f"≤ {row.most:.3g}×")
    if row.least is not None:
        targets.append(f"≥ {row.least:,.0f} {row.unit}")
    if row.highest is not None:
        targets.append(f"≤ {row.highest:,.0f} {row.unit}")
    verdict = "" if not targets else "met" if row.met else "missed"
    ours, theirs = _figure(row.ours, row.unit), _figure(row.theirs, row.unit)
    return row.what, ours, row.peer, theirs, f"{row.ratio:.3g}×", ", ".join(targets), verdict


def _figure(value: float, unit: str) -> str:
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
