"""What fuzzing has found stays mended, and the fuzzer itself finds what is wrong."""

from __future__ import annotations

import importlib.util
import logging
import random
from pathlib import Path

import pytest
from fuzzing.engine import Watch, dictionary, repeated, run, with_other_value
from fuzzing.seeds import seeds, words
from fuzzing.targets import TARGETS

CASES = sorted(path for path in (Path(__file__).parent / "fuzzing" / "cases").glob("*/*"))


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_was_found_stays_mended(path: Path, tmp_path: Path) -> None:
    """An input that raised, hung or took all memory is answered, and quickly."""
    watch = Watch(TARGETS[path.parent.name], tmp_path)
    watch(path.read_bytes())
    assert [kept.read_text() for kept in tmp_path.glob("*.txt")] == []


@pytest.mark.parametrize("target", TARGETS)
def test_what_the_fuzzer_begins_with_is_answered(target: str, caplog: pytest.LogCaptureFixture) -> None:
    """Each target takes its seeds, no bytes at all, and bytes that are nothing."""
    caplog.set_level(logging.CRITICAL, "opentelemetry")  # it logs headers as they are, which no report can be sent with
    begun = list(seeds(target))
    assert begun
    for data in (*begun, b"", b"\0", b"\xff" * 100):
        TARGETS[target](data)


def test_a_finding_is_kept_once_for_each_place(tmp_path: Path) -> None:
    """An input that raises is kept with what it raised; another one that raises in the same place is not."""

    def target(data: bytes) -> None:
        if data.startswith(b"x"):
            raise KeyError("missing")
        if data.startswith(b"y"):
            raise OverflowError("too large")

    watch = Watch(target, tmp_path)
    for data in (b"a", b"x1", b"x2", b"y1"):
        watch(data)
    kept = {path.read_bytes() for path in tmp_path.iterdir() if path.suffix != ".txt"}
    assert kept == {b"x1", b"y1"}
    assert any("KeyError" in path.read_text() for path in tmp_path.glob("*.txt"))


def test_what_takes_too_long_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An input that takes more of the processor than is allowed is kept."""
    monkeypatch.setattr("fuzzing.engine.SLOW", 0.01)
    Watch(lambda _: sum(range(2_000_000)), tmp_path)(b"slow")
    (kept,) = (path for path in tmp_path.iterdir() if path.suffix != ".txt")
    assert kept.read_bytes() == b"slow"


@pytest.mark.parametrize("target", TARGETS)
def test_words_are_as_the_fuzzer_reads_them(target: str, tmp_path: Path) -> None:
    """Each word is a line of escapes between quotes."""
    lines = dictionary(list(words(target)), tmp_path).read_text(encoding="ascii").splitlines()
    assert all(line.startswith('"\\x') and line.endswith('"') for line in lines if line)


def test_mutations_of_our_own() -> None:
    """A value becomes one of another type, and what was JSON mostly stays so; a piece is repeated up to the longest."""
    chance = random.Random(7)
    data = b'\0[{"at":1,"message":"a","level":[true]}]'
    changed = {with_other_value(data, chance) for _ in range(100)}
    assert len(changed) > 20
    assert b'\0[{"at":[],"message":"a","level":[true]}]' in changed
    assert with_other_value(b"no JSON", chance) == b"no JSON"
    assert max(len(repeated(b"abc", 1000, chance)) for _ in range(100)) > 500


@pytest.mark.slow
def test_the_fuzzer_runs(tmp_path: Path) -> None:
    """The command fuzzes for as long as it was told, and says how many inputs it tried."""
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed")
    report = run("search", 12, tmp_path / "corpus", tmp_path / "findings")
    assert report.executions > 100
    assert report.findings == []
