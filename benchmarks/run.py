"""All benchmarks, one table: `python -m benchmarks.run` from the top folder of the source tree.

It needs the extra `demo`, for the demonstration job; `--only peers` needs the extra `benchmarks`, what else is named
there the extra `test`, and the searches take some minutes. `--all` is all of it, in one table. Ratios are what to go
by: both sides are measured in turn. The absolute figures hold for the machine that is named below the table, while it
is not busy with something else. All is deleted at the end, which makes the disk of a run that follows within some
minutes slower on ext4 (see `traces`).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import (  # one a line: each is a part of the table
    calls,
    exporting,
    footprint,
    foreign,
    frameworks,
    grepping,
    peers,
    receiver,
    searches,
    shipping,
    traces,
    viewing,
)
from benchmarks.harness import Row, logging_cost, machine, table

PARTS = (
    *("calls", "foreign", "traces", "peers", "footprint", "shipping", "searches"),
    *("exporting", "receiver", "viewing", "frameworks", "grepping"),
)
USUAL = ("calls", "foreign", "traces")
"""What needs no servers and takes two minutes."""


def main() -> int:
    """Measure and print. Exit code 1 where a target is missed."""
    given = _arguments()
    before = logging_cost()
    with tempfile.TemporaryDirectory(prefix="trifle-benchmarks-", dir=given.folder) as folder:
        found = list(_rows(given, Path(folder)))
    print(table(found, markdown=given.markdown))
    print(f"\nMeasured {machine((before + logging_cost()) / 2)}")
    return int(not all(row.met for row in found))


def _rows(given: argparse.Namespace, folder: Path) -> Iterator[Row]:
    for name, rows in _parts(given).items():
        if given.all or name in (given.only or USUAL):
            print(name, file=sys.stderr)
            yield from rows(folder / name)


def _parts(given: argparse.Namespace) -> dict[str, Callable[[Path], Iterator[Row]]]:
    return {
        "calls": lambda folder: calls.rows(folder, given.rounds),
        "foreign": lambda folder: foreign.rows(folder, given.rounds // 3),
        "traces": lambda folder: traces.rows(folder, given.processes, given.traces),
        "peers": lambda folder: peers.rows(folder, max(given.processes // 2, 1), given.traces // 5),
        "footprint": lambda folder: footprint.rows(folder, given.processes * 2),
        "shipping": lambda folder: shipping.rows(folder, given.rounds // 4, given.traces // 3),
        "searches": lambda folder: searches.rows(folder, given.records),
        "exporting": exporting.rows,
        "viewing": lambda folder: viewing.rows(folder, given.records),
        "grepping": lambda folder: grepping.rows(folder, given.processes),
        "receiver": lambda folder: receiver.rows(folder, given.processes),
        "frameworks": lambda folder: frameworks.rows(folder, given.processes * 3, given.traces // 10),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--markdown", action="store_true", help="print the table for the README")
    parser.add_argument("--all", action="store_true", help="measure everything, which takes the better part of an hour")
    parser.add_argument("--only", nargs="+", choices=PARTS, help=f"what to measure (usually {' '.join(USUAL)})")
    parser.add_argument("--rounds", type=int, default=301, help="rounds of each comparison of calls (301)")
    parser.add_argument("--processes", type=int, default=5, help="processes of each contender with the job (5)")
    parser.add_argument("--traces", type=int, default=3000, help="traces in each of those (3000)")
    parser.add_argument("--records", type=int, default=searches.RECORDS, help="records to search (1,000,000)")
    parser.add_argument("--folder", type=Path, help="where archives are made for the while (the temporary folder)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
