"""`demo`: runs the demonstration job, and shows what it left in the archive."""

from __future__ import annotations

import importlib
import shlex
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

import trifle_otel as trifle
from trifle_otel.archive import Archive
from trifle_otel.cli.options import Place
from trifle_otel.cli.show import Lines, print_record
from trifle_otel.cli.terminal import STYLES, Screen, complain, fitted, progress, state_label
from trifle_otel.cli.visible import count, duration, visible
from trifle_otel.configuration import default_index
from trifle_otel.errors import MissingDependency, UsageError
from trifle_otel.queries import MAX_LIMIT
from trifle_otel.records import ERROR, RUNNING, SUCCESS, TRACE_STATES, WARNING, TraceRecord

BEGINNING, ENDING = 30, 12  # lines that are shown of a trace, at most
FLUSH_TIMEOUT = 30.0  # seconds
_PROGRAM = "trifle-otel"
_DESCRIPTION = 22  # cells beside a command, for what it is


def demo(*, products: int = 300, place: Place | None = None) -> int:
    """Calculate the prices of some hundred products, one trace each, and show one of the traces.

    Parameters
    ----------
    products
        How many, at most 2,000.
    """
    place = place or Place()
    if not 1 <= products <= 2000:
        raise UsageError(f"not a number of products: {products}; it is from 1 to 2000")
    job = load()
    archive = trifle.configure(place.name, index=place.index or default_index())
    began, clock = datetime.now(timezone.utc), time.monotonic_ns()
    run(job, products)
    took = time.monotonic_ns() - clock
    if not trifle.flush(FLUSH_TIMEOUT):
        complain(f"not all traces are in {archive.url} yet; `trifle-otel recover` ships what waits")
        return 1
    records = list(everything_since(archive, began))
    if not records:
        complain(f"no trace has reached {archive.url}")
        return 1
    screen = Screen()
    print_summary(screen, records, took, place)
    chosen = choose(records, SUCCESS, WARNING, ERROR)
    print_excerpt(screen, archive, chosen)
    print_commands(screen, records, chosen, place)
    return 0


def load() -> Any:
    """The module of the demonstration job. Raises `MissingDependency`."""
    try:
        return importlib.import_module("trifle_otel.examples.price_calculation")
    except ModuleNotFoundError as error:
        raise MissingDependency(f"the demonstration needs {error.name}: pip install 'trifle-otel[demo]'") from error


def run(job: Any, products: int) -> None:
    """Run the job for that many products."""
    with progress("Calculating prices", products) as bar:
        for _ in job.run(job.products(products)):
            bar.advance(bar.task_ids[0])


def everything_since(archive: Archive, began: datetime) -> Iterator[TraceRecord]:
    """The records of this run, the newest first."""
    cursor = None
    while True:
        page = archive.search(segment="prices/landed", since=began, limit=MAX_LIMIT, cursor=cursor)
        yield from page.records
        cursor = page.cursor
        if cursor is None:
            return


def choose(records: list[TraceRecord], *states: str) -> TraceRecord:
    """The newest of this run's traces in the first of these states that there is."""
    for state in states:
        for record in records:
            if record.state == state:
                return record
    return records[0]


def print_summary(screen: Screen, records: list[TraceRecord], took: int, place: Place) -> None:
    """What was recorded, by state."""
    lines = sum(record.length for record in records)
    calculated = f"Calculated the prices of {count(len(records), 'product')} in {duration(took)}: "
    screen.wrap([], visible(f"{calculated}{count(lines, 'line')} in {count(len(records), 'trace')}, in {place.name}."))
    screen.print()
    states = Counter(record.state for record in records)
    for state in TRACE_STATES:
        if state != RUNNING or states[state]:
            label = fitted(state_label(state), 10)
            screen.print("  ", (label, STYLES[state]), f"{states[state]:>6,}   ", (_MEANINGS[state], "dim"))
    screen.print()


_MEANINGS = {
    RUNNING: "not finished",
    SUCCESS: "has its prices",
    WARNING: "a guard spoke up: look before you sell",
    ERROR: "no prices: a guard refused, or the calculation raised",
}


def print_excerpt(screen: Screen, archive: Archive, record: TraceRecord) -> None:
    """A trace without its middle: its first sections, and the last one."""
    screen.print("One of them, without its middle:")
    screen.print()
    print_record(screen, record)
    screen.print()
    lines = Lines(archive, record, archive.entries(record))
    heads = [place for place, entry in enumerate(lines.entries) if entry.type == "head"]
    total = len(lines.entries)
    end = max((place for place in heads if place <= BEGINNING), default=0)
    rest = max(heads[-1] if heads else 0, total - ENDING, end)
    lines.print(screen, 0, end)
    if rest > end:
        screen.print((f"{'⋮':>{lines.number_width}}  {count(rest - end, 'line')}", "dim"))
    lines.print(screen, rest, total)
    screen.print()


def print_commands(screen: Screen, records: list[TraceRecord], chosen: TraceRecord, place: Place) -> None:
    """What to try next, ready to be copied."""
    failed = choose(records, ERROR)
    product = next((tag for tag in chosen.tags if tag.startswith("product:")), None)
    commands = [(f"show {chosen.reference}", "this trace, whole"), ("ls", "the newest traces")]
    if failed.state == ERROR:
        commands += [("search --state error", "what went wrong"), (f"show {failed.reference}", "one of those")]
    if product:
        commands.append((f"search --tag {shlex.quote(product)}", "by tag"))
    screen.print("Go on with:")
    screen.print()
    lines = [(f"{_PROGRAM} {command}{_options(place)}", what) for command, what in commands]
    widest = max(len(line) for line, _ in lines)
    beside = screen.width is None or widest + _DESCRIPTION <= screen.width
    for line, what in lines:
        if beside:
            screen.print("  ", (f"{visible(line):<{widest}}", "bold"), "   ", (what, "dim"))
        else:
            screen.print("  ", (f"# {what}", "dim"))
            screen.print("  ", (visible(line), "bold"))


def _options(place: Place) -> str:
    given = {"--archive": place.archive, "--index": place.index}
    return "".join(f" {option} {shlex.quote(value)}" for option, value in given.items() if value is not None)
