"""The command: `python -m tests.conformance [--only TEXT] COMMAND…`; exits with 1 where a case failed."""

from __future__ import annotations

import argparse
import sys
from collections import Counter

from .cases import all_cases
from .runner import implementation, run


def main(arguments: list[str]) -> int:
    """Ask an implementation, and print what became of each case."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what reads questions and writes answers")
    given = parser.parse_args(arguments)
    if not given.command:
        parser.error("no command is given; ours is: python -m tests.conformance.adapter")
    cases = [case for case in all_cases() if given.only in case.name]
    counts: Counter[str] = Counter()
    with implementation(given.command) as ask:
        for case, verdict, remarks in run(ask, cases):
            counts[verdict] += 1
            print(f"{verdict:8}{case.name}" + "".join(f"\n        {remark}" for remark in remarks))  # noqa: T201
    print(", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items())))  # noqa: T201
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
