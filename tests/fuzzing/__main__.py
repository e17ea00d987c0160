"""The command: `python -m tests.fuzzing TARGET… [--seconds 600] [--corpus FOLDER] [--findings FOLDER]`.

`--help` says which targets there are. Prints a line of JSON for each; exits with 1 where something was found.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

from .engine import as_json, run
from .targets import TARGETS


def main(arguments: list[str]) -> int:
    """Run the fuzzers that are named, one after the other."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzzing", description="Targets: " + ", ".join(TARGETS))
    parser.add_argument("targets", nargs="+", choices=[*TARGETS, "all"], metavar="TARGET")
    parser.add_argument("--seconds", type=float, default=600, help="for each target (600)")
    parser.add_argument(
        "--corpus", type=Path, default=Path(".fuzzing/corpus"), help="inputs that are kept for the next time"
    )
    parser.add_argument("--findings", type=Path, default=Path(".fuzzing/findings"), help="inputs that must not fail")
    given = parser.parse_args(arguments)
    if importlib.util.find_spec("atheris") is None:
        parser.error("atheris is not installed: pip install atheris")
    found = False
    for target in TARGETS if "all" in given.targets else given.targets:
        report = run(target, given.seconds, (given.corpus / target).resolve(), (given.findings / target).resolve())
        print(as_json(report), flush=True)  # noqa: T201 - the command's answer
        found = found or bool(report.findings)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
