"""Runs a target under the fuzzer, and keeps what is found: an exception, a run that takes too long or too much memory.

The fuzzer (atheris, which is libFuzzer) runs in a process of its own, begun anew when it has found something that ends
it. An exception does not: it is kept, once for each place that raises it, and fuzzing goes on.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

SLOW = 2.0
"""Seconds of the processor that one input may take."""
TIMEOUT = 60
"""Seconds after which a run is ended."""
MEMORY = 1500
"""Megabytes that the process may take, what is imported included."""
LONGEST = 20_000
"""Bytes of an input."""
_EXECUTED = re.compile(rb"stat::number_of_executed_units:\s*(\d+)")
_PROGRESS = re.compile(rb"^#(\d+)\t", re.MULTILINE)
_VALUE = re.compile(rb'(?<=[:,\[])\s*(?:"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*|true|false|null|\[\]|\{\})')
_ODD = (
    *(b"null", b"true", b"-1", b"0.5", b"1e999", b"NaN", b"99999999999999999999", b'""', b'"a"', b'"1"', b"[]", b"{}"),
    *(b"[1]", b'{"a":[null]}', b'"\\ud800"', b'"\\u0000"', b"[" * 60 + b"]" * 60),
)
_ROOT = Path(__file__).parent.parent.parent


@dataclass
class Report:
    """What a run of the fuzzer came to.

    Attributes:
        seconds: how long it ran.
        executions: how many inputs it tried.
        findings: files, each an input, with what it raised in a file beside it.
    """

    target: str
    seconds: float = 0.0
    executions: int = 0
    findings: list[str] = field(default_factory=list)


def run(target: str, seconds: float, corpus: Path, findings: Path) -> Report:
    """Fuzz a target for so long; what is new of the inputs is kept in `corpus`, for the next time."""
    report = Report(target)
    began = time.monotonic()
    for folder in (corpus, findings):
        folder.mkdir(parents=True, exist_ok=True)
    known = {path.name for path in findings.iterdir()}
    while (left := seconds - (time.monotonic() - began)) >= 1:
        command = [sys.executable, "-m", "tests.fuzzing.engine", target, str(int(left)), str(corpus), str(findings)]
        before = time.monotonic()
        with tempfile.TemporaryFile() as said:
            subprocess.run(command, cwd=_ROOT, stdout=said, stderr=said, check=False, env=_environment())
            said.seek(0)
            output = said.read()
        report.executions += _executions(output)
        if time.monotonic() - before < left - 1 and not _new(findings, known):
            raise RuntimeError(f"the fuzzer of {target} ended by itself:\n{output[-2000:].decode(errors='replace')}")
        known |= set(_new(findings, known))
    report.seconds = time.monotonic() - began
    report.findings = sorted(str(path) for path in findings.iterdir() if path.suffix != ".txt")
    return report


def _environment() -> dict[str, str]:
    # `from trifle_otel` is the tree that the tests lie in
    return {**os.environ, "PYTHONPATH": str(_ROOT)}


def _new(findings: Path, known: set[str]) -> list[str]:
    return [path.name for path in findings.iterdir() if path.name not in known]


def _executions(output: bytes) -> int:
    numbers = [*_EXECUTED.findall(output), *_PROGRESS.findall(output)]
    return max(map(int, numbers), default=0)


class Watch:
    """Calls a target, and keeps the inputs that it must not fail with."""

    def __init__(self, target: Any, findings: Path) -> None:
        self.target = target
        self.findings = findings
        self.seen: set[str] = set()

    def __call__(self, data: bytes) -> None:
        began = time.thread_time()
        try:
            self.target(data)
        except Exception as error:
            self.keep(data, _place(error), traceback.format_exc())
            return
        took = time.thread_time() - began
        if took > SLOW:
            self.keep(data, "slow", f"{took:.1f} seconds for {len(data):,} bytes")

    def keep(self, data: bytes, place: str, what: str) -> None:
        """Keep an input, unless one of the same place was kept by this process."""
        if place in self.seen:
            return
        self.seen.add(place)
        name = sha256(place.encode()).hexdigest()[:16]
        (self.findings / name).write_bytes(data)
        (self.findings / f"{name}.txt").write_text(f"{place}\n\n{what}", encoding="utf-8", errors="backslashreplace")


def _place(error: BaseException) -> str:
    """Which error it is, and the innermost of our own lines that it came through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "trifle_otel" in frame.filename] or frames
    where = own[-1]
    return f"{type(error).__name__} {Path(where.filename).name}:{where.name}: {where.line}"


def mutator(fuzzer: Any) -> Any:
    """The fuzzer's own mutations, and two of ours.

    Now and then a piece is repeated very often, so that what is quadratic shows. Where there is JSON, a value becomes
    one of another type: bytes alone would seldom do that and stay JSON.
    """

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        chance = random.Random(seed)
        way = chance.random()
        if data and way < 0.02:
            return repeated(data, most, chance)
        if way < 0.3:
            return with_other_value(data, chance)[:most]
        mutated: bytes = fuzzer.Mutate(data, most)
        return mutated

    return mutate


def repeated(data: bytes, most: int, chance: random.Random) -> bytes:
    """The input with one of its pieces very often."""
    start = chance.randrange(len(data))
    piece = data[start : start + chance.choice((1, 2, 8, 40))]
    times = chance.randrange(1, max(2, most // len(piece)))
    return (data[:start] + piece * times + data[start:])[:most]


def with_other_value(data: bytes, chance: random.Random) -> bytes:
    """The input with another value in the place of one of its JSON; the same where it has none."""
    places = [found.span() for found in _VALUE.finditer(data)]
    if not places:
        return data
    start, end = chance.choice(places)
    return data[:start] + chance.choice(_ODD) + data[end:]


def dictionary(words: Sequence[str], folder: Path) -> Path:
    """A file of words, as the fuzzer reads them."""
    path = folder / "words.dict"
    lines = (
        '"' + "".join(f"\\x{byte:02x}" for byte in word.encode("utf-8", "backslashreplace")) + '"' for word in words
    )
    path.write_text("\n".join(dict.fromkeys(lines)) + "\n", encoding="ascii")
    return path


def main(name: str, seconds: str, corpus: str, findings: str) -> None:
    """Fuzz in this process until the time is over; it ends with it."""
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["trifle_otel", "tests.fuzzing"]):
        seeds = importlib.import_module("tests.fuzzing.seeds")
        targets = importlib.import_module("tests.fuzzing.targets")
    folder = Path(tempfile.mkdtemp(prefix="trifle-seeds-"))
    for number, data in enumerate(seeds.seeds(name)):
        (folder / str(number)).write_bytes(data)
    cases = Path(__file__).parent / "cases" / name
    options = {
        "dict": dictionary(list(seeds.words(name)), Path(tempfile.mkdtemp(prefix="trifle-words-"))),
        "max_total_time": seconds,
        "timeout": TIMEOUT,
        "rss_limit_mb": MEMORY,
        "max_len": LONGEST,
        "artifact_prefix": f"{findings}/",
        "print_final_stats": 1,
    }
    arguments = [f"-{option}={value}" for option, value in options.items()]
    folders = [corpus, str(folder), *([str(cases)] if cases.is_dir() else [])]
    logging.disable()  # what is left out is said so often that it takes most of the time
    watch = Watch(targets.TARGETS[name], Path(findings))
    atheris.Setup([name, *arguments, *folders], watch, custom_mutator=mutator(atheris))
    atheris.Fuzz()


def as_json(report: Report) -> str:
    """A report in one line."""
    return json.dumps(vars(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
