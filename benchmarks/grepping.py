"""`grep` over payloads against `zgrep` over the same files, in turn: MB of JSON a second, start and index included.

Two archives hold the lines of the demonstration job: one as it writes them, some 316 a trace; in the other
each trace has a hundred thousand, in one part. Both commands run as processes of their own and print into a pipe.
`zgrep` gives whole parts, since each is one line; ours gives the lines. The files are in the page cache for both.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from benchmarks.harness import Row

if TYPE_CHECKING:
    from trifle_otel.archive import Archive

ROOT = Path(__file__).resolve().parent.parent
MOST = 0.5
"""Of `zgrep`'s time, ours may take so much at most."""
NEEDLE = "the needle in the hay 4711"
TRACES, LONG_TRACES, LINES = 1_000, 24, 100_000
_SEEDS = 250


@dataclass(frozen=True, slots=True)
class Hay:
    """An archive: where it is, its parts, and bytes of JSON in them."""

    name: str
    folder: Path
    files: list[str]
    size: int


def rows(folder: Path, rounds: int, traces: int = TRACES, long_traces: int = LONG_TRACES) -> Iterator[Row]:
    """All figures of this module; archives are made in `folder`."""
    if shutil.which("zgrep") is None:
        print("  zgrep is not there", file=sys.stderr)
        return
    seeds = _seeds(folder / "seeds")
    lines = [entry for entries in seeds for entry in entries]
    short = [seeds[number % len(seeds)] for number in range(traces)]
    long = [(lines[number * 4_999 % len(lines) :] + lines)[:LINES] for number in range(long_traces)]
    for name, hay in (("316 lines each", short), (f"{LINES:,} lines each", long)):
        made = _hay(folder / name.replace(" ", "-"), f"{len(hay):,} traces, {name}", hay)
        for what, arguments in (
            ("a text that is in one line", [NEEDLE]),
            ("the same, capitals or not", ["-i", NEEDLE.upper()]),
            ("an expression", ["needle.*[0-9]{4}$"]),
            ("a text that is in each trace", ["Guard: the weight"]),
        ):
            yield _compared(f"grep, {made.name}: {what}", made, arguments, rounds)


def _seeds(folder: Path) -> list[list[dict[str, Any]]]:
    """The entries of some traces of the demonstration job."""
    from trifle_otel import Archive

    plain = {name: value for name, value in os.environ.items() if not name.startswith(("TRIFLE_", "OTEL_"))}
    command = [sys.executable, "-m", "trifle_otel", "demo", "--products", str(2 * _SEEDS), "--archive", str(folder)]
    subprocess.run(command, cwd=ROOT, env=plain, stdout=subprocess.DEVNULL, check=True)
    with Archive.open(folder) as archive:
        records = archive.search(segment="prices/landed", limit=1000).records
        longest = sorted(records, key=lambda record: record.length)[-_SEEDS:]
        return [[entry.stored for entry in archive.entries(record)] for record in longest]


def _hay(folder: Path, name: str, traces: Sequence[list[dict[str, Any]]]) -> Hay:
    """Store traces, one of which holds the needle."""
    from trifle_otel import Archive

    size = 0
    with Archive.open(folder) as archive:
        archive.setup()
        for number, entries in enumerate(traces):
            if number == len(traces) // 2:
                entries = [*entries, {**entries[-1], "message": NEEDLE}]
            size += _store(archive, number, entries)
    files = sorted(str(path) for path in folder.rglob("data_*.gz"))
    return Hay(name, folder, files, size)


def _store(archive: Archive, number: int, entries: list[dict[str, Any]]) -> int:
    """Store a trace. Gives its bytes of JSON."""
    from trifle_otel.encoding import encode_part, to_json
    from trifle_otel.testing import sample_record

    record = sample_record(reference=f"{number:026d}", parts=1, length=len(entries))
    record = replace(record, counters={**record.counters, "types": {"media": 0}})
    archive.store.write(record.folder, "data_1.json.gz", encode_part(entries))
    archive.index.put([record])
    return len(to_json(entries))


def _compared(what: str, hay: Hay, arguments: list[str], rounds: int) -> Row:
    ours = [sys.executable, "-m", "trifle_otel", "grep", *arguments, "--archive", str(hay.folder)]
    theirs = ["zgrep", "-h", *_of_grep(arguments), *hay.files]
    samples = []
    for number in range(rounds + 1):
        first, second = (ours, theirs) if number % 2 else (theirs, ours)
        taken = {id(first): _seconds(first), id(second): _seconds(second)}
        if number:  # before, files were not in the page cache
            samples.append((taken[id(ours)], taken[id(theirs)]))
    rates = [statistics.median(hay.size / 1e6 / seconds for seconds in side) for side in zip(*samples, strict=True)]
    print(f"  {what}: {rates[0]:,.0f} MB/s, zgrep {rates[1]:,.0f} MB/s", file=sys.stderr)
    ratio = statistics.median(first / second for first, second in samples)
    return Row(what, rates[0], "MB/s", "`zgrep`", rates[1], ratio, most=MOST)


def _of_grep(arguments: list[str]) -> list[str]:
    """The same as grep takes it: its lines are whole parts."""
    return [*arguments[:-1], "-E", arguments[-1].replace("$", '"')]


def _seconds(command: list[str]) -> float:
    """How long a command takes until all that it prints was read."""
    start = perf_counter()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        found = 0
        while piece := process.stdout.read(1 << 16):
            found += len(piece)
    if not found or process.returncode:
        raise RuntimeError(f"{command[:5]} found nothing")
    return perf_counter() - start
