"""What whole traces cost: the demonstration job, from its first line until the last row is in the index.

Each contender runs in fresh processes with fresh folders, in turn with the others: on one core, for which the targets
are, and on all that there are, where the prototype has its index made beside the job. Only stones that are priced in
full are calculated, some 316 entries each, with the job's own caches warm. The real SDK is there and samples
everything out, so that the archive alone is measured. A contender is a function that sets up a process (a peer's makes
a stand-in for `trifle_otel`, as the floor does) and gives what brings the last trace to disk; to add one, add it
to `CONTENDERS`.

No run's folder is deleted before the last run is over: ext4 is slow at creating files for half a minute after
many were deleted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Literal

from benchmarks.harness import RATE, Row, logging_cost

if TYPE_CHECKING:
    from examples.price_calculation import Product

ROOT = Path(__file__).resolve().parent.parent
TARGET_RATE, AT_LOGGING_COST = 1600, 6.0
"""Traces a second, on a machine where `logging.info` costs that many microseconds."""
TARGET_RATIO = 1.7
WARM_UP = 100

Finish = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Run:
    """One process: traces a second, the final flush included; microseconds of CPU a trace, of all its threads."""

    contender: str
    rate: float
    cpu: float
    logging: float


def floor(folder: Path) -> Finish:
    """See `floor`."""
    from benchmarks.floor import stand_in

    return stand_in(folder).close


def deferred(folder: Path) -> Finish:
    """Ours, written at the end of each trace."""
    return _ours(folder, "deferred")


def live(folder: Path) -> Finish:
    """Ours, flushed while a trace runs where it runs for long."""
    return _ours(folder, "live")


def untraced(folder: Path) -> Finish:
    """The job alone: every call of ours is a no-op."""
    del folder
    return lambda: None


CONTENDERS: dict[str, Callable[[Path], Finish]] = {
    "floor": floor,
    "deferred": deferred,
    "live": live,
    "untraced": untraced,
}


def _ours(folder: Path, mode: Literal["live", "deferred"]) -> Finish:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

    import trifle_otel as trifle

    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    trifle.configure(archive=folder, default_mode=mode, tracer_provider=provider)

    def finish() -> None:
        if not trifle.flush(timeout=60):
            raise TimeoutError("the archive did not take all traces within a minute")

    return finish


def rows(folder: Path, rounds: int, traces: int) -> Iterator[Row]:
    """All figures of this module; archives are made in `folder`."""
    pairs = [(_all_once(folder, round_, traces, True), _all_once(folder, round_, traces)) for round_ in range(rounds)]
    alone, runs = ([pair[side] for pair in pairs] for side in (0, 1))
    logging_us = statistics.median(run.logging for runs_ in alone for run in runs_.values())
    least = TARGET_RATE * AT_LOGGING_COST / logging_us
    for mode in ("deferred", "live"):
        yield _row(f"whole job, {mode}, on one core", mode, alone, TARGET_RATIO, least)
    for mode in ("deferred", "live"):
        yield _row(f"whole job, {mode}, on all cores", mode, runs)
    yield _cpu_row("whole job, deferred, CPU", "deferred", "floor", runs)
    yield _cpu_row("whole job, live, CPU", "live", "floor", runs)
    yield _cpu_row("whole job, deferred, CPU", "deferred", "untraced", runs)


def _row(
    what: str, ours: str, runs: Sequence[dict[str, Run]], most: float | None = None, least: float | None = None
) -> Row:
    ratio = statistics.median(run["floor"].rate / run[ours].rate for run in runs)
    return Row(what, _rate(ours, runs), RATE, _LABELS["floor"], _rate("floor", runs), ratio, most, least)


def _cpu_row(what: str, ours: str, peer: str, runs: Sequence[dict[str, Run]]) -> Row:
    first, second = (statistics.median(run[name].cpu for run in runs) for name in (ours, peer))
    ratio = statistics.median(run[ours].cpu / run[peer].cpu for run in runs)
    return Row(what, first, "µs a trace", _LABELS[peer], second, ratio)


_LABELS = {"floor": "bare prototype", "untraced": "the job untraced"}


def _rate(contender: str, runs: Sequence[dict[str, Run]]) -> float:
    return statistics.median(run[contender].rate for run in runs)


def _all_once(folder: Path, round_: int, traces: int, on_one_core: bool = False) -> dict[str, Run]:
    """Each contender once; the order turns from round to round."""
    names = list(CONTENDERS)
    names = names[round_ % len(names) :] + names[: round_ % len(names)]
    more = ["--on-one-core"] if on_one_core else []
    return {name: in_a_process(name, folder / f"{name}-{round_}{len(more)}", traces, more=more) for name in names}


def in_a_process(
    contender: str, folder: Path, traces: int, module: str = "benchmarks.traces", more: Sequence[str] = ()
) -> Run:
    """One run in a process of its own: `module` as a program, with `more` options."""
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", module, contender, str(folder), "--traces", str(traces), *more]
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("TRIFLE_", "OTEL_"))}
    done = subprocess.run(command, cwd=ROOT, env=plain, stdout=subprocess.PIPE, check=True)
    run = Run(**json.loads(done.stdout))
    print(f"  {contender}: {run.rate:,.0f} traces/s, {run.cpu:.0f} µs CPU a trace", file=sys.stderr)
    return run


def measure(contender: str, prepare: Callable[[Path], Finish], folder: Path, traces: int) -> Run:
    """Run the job in this process, which must have imported none of the contenders."""
    logging_us = logging_cost()
    finish = prepare(folder)
    from examples import price_calculation as job

    stones = priced_in_full(traces)
    for stone in stones[:WARM_UP]:
        job.calculate(stone)
    start, cpu = perf_counter(), process_time()
    for stone in stones:
        job.calculate(stone)
    finish()
    seconds, cpu = perf_counter() - start, process_time() - cpu
    return Run(contender, len(stones) / seconds, cpu / len(stones) * 1e6, logging_us)


def priced_in_full(count: int) -> list[Product]:
    """So many stones, some of them several times. Calculating each outside of a trace warms the job's caches."""
    from examples import price_calculation as job

    found = []
    for stone in job.products():
        try:
            if job.Goods(stone).acceptable:
                job.landed_prices(stone, job.COUNTRIES)
                found.append(stone)
        except ArithmeticError:  # its data make no sense, which is part of the demonstration
            continue
    return (found * (count // len(found) + 1))[:count]


def main() -> None:
    """One run in this process, as JSON: what `rows` starts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contender", choices=CONTENDERS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--traces", type=int, default=3000)
    parser.add_argument("--on-one-core", action="store_true", help="where the system can keep a process to one")
    given = parser.parse_args()
    if given.on_one_core and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    print(json.dumps(asdict(measure(given.contender, CONTENDERS[given.contender], given.folder, given.traces))))


if __name__ == "__main__":
    main()
