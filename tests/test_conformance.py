"""The conformance suite: this library passes it, and an implementation that is wrong anywhere does not."""

from __future__ import annotations

import base64
import copy
import gzip
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from conformance import adapter
from conformance.cases import KINDS, Case, all_cases
from conformance.comparing import MismatchError, differences, strict_part
from conformance.runner import BrokenImplementationError, implementation, run

from trifle_otel import configuration

CASES = all_cases()
ROOT = Path(__file__).parent.parent

Answer = dict[str, Any]
Fault = Callable[[Answer], None]


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """The adapter is found as a module of the tests."""
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_we_pass(case: Case) -> None:
    """What this library answers is what the format asks for."""
    answer = json.loads(json.dumps(adapter.answer(case.kind, json.loads(case.question)["given"])))
    assert differences(case.kind, case.given, case.expected, answer) == []


def test_every_kind_has_cases() -> None:
    """No kind of question is without one, and the golden archives are among them."""
    assert {case.kind for case in CASES} == set(KINDS)
    assert sum(case.name.startswith("read/golden-") for case in CASES) == 6


def test_a_command_is_asked() -> None:
    """Our adapter as a command, over pipes, as any other implementation."""
    some = [case for case in CASES if case.name in ("write/a-block", "read/gzip", "search/the-cursor", "path/layout")]
    with implementation([sys.executable, "-m", "tests.conformance.adapter"]) as ask:
        assert [outcome.verdict for outcome in run(ask, some)] == ["passed"] * 4


def test_what_is_no_implementation_fails() -> None:
    """A command that ends, or says something else than answers, fails each case and hangs nothing."""
    for program in ("pass", "print('hello', flush=True)", "print('[]', flush=True)"):
        with implementation([sys.executable, "-c", program]) as ask:
            assert {outcome.verdict for outcome in run(ask, CASES[:3])} == {"failed"}
    with implementation([sys.executable, "-c", "pass"]) as ask, pytest.raises(BrokenImplementationError):
        ask(CASES[0])


def test_cases_may_be_skipped() -> None:
    """An implementation that has no such thing says so, and that is neither passed nor failed."""
    (outcome,) = run(lambda _: {"skipped": "no MongoDB"}, CASES[:1])
    assert (outcome.verdict, outcome.remarks) == ("skipped", ["no MongoDB"])


# --- Implementations that are wrong


def _entries(change: Callable[[list[Any]], object]) -> Fault:
    """Wrong in the entries of the last part."""

    def fault(answer: Answer) -> None:
        path = max(path for path in answer["files"] if "/data_" in path)
        entries = json.loads(gzip.decompress(base64.b64decode(answer["files"][path])))
        change(entries)
        data = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
        answer["files"][path] = base64.b64encode(gzip.compress(data, mtime=0)).decode()

    return fault


def _stored(change: Callable[[bytes], bytes]) -> Fault:
    """Wrong in the bytes of the last part."""

    def fault(answer: Answer) -> None:
        path = max(path for path in answer["files"] if "/data_" in path)
        data = change(base64.b64decode(answer["files"][path]))
        answer["files"][path] = base64.b64encode(data).decode()

    return fault


def _record(**changes: Any) -> Fault:
    return lambda answer: answer["record"].update(changes)


def _moved(answer: Answer) -> None:
    answer["files"] = {f"x/{path}": data for path, data in answer["files"].items()}


def _renamed(answer: Answer) -> None:
    answer["files"] = {path.replace("data_1", "data_01"): data for path, data in answer["files"].items()}


def _beside(answer: Answer) -> None:
    (path,) = answer["files"]
    answer["files"][f"{path.rpartition('/')[0]}/artifacts/stray.txt"] = ""


def _reordered(entries: list[Any]) -> None:
    entries[:] = [dict(reversed(entry.items())) for entry in entries]


def _unpacked(change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    return lambda data: gzip.compress(change(gzip.decompress(data)), mtime=0)


FAULTS: Mapping[str, Fault] = {
    "an entry is missing": _entries(lambda entries: entries.pop()),
    "an entry is too many": _entries(lambda entries: entries.append(entries[-1])),
    "a message": _entries(lambda entries: entries[1].update(message="Loading ↵")),
    "a result one level deeper": _entries(lambda entries: entries[-1].update(level=1)),
    "a state": _entries(lambda entries: entries[2].update(state="error")),
    "a type": _entries(lambda entries: entries[-1].update(type="text")),
    "a time that is no integer": _entries(lambda entries: entries[0].update(at=1700000000.0)),
    "a level as a text": _entries(lambda entries: entries[0].update(level="0")),
    "a size where there is none": _entries(lambda entries: entries[0].update(size=1)),
    "keys in another order": _entries(_reordered),
    "a newline at the end": _stored(_unpacked(lambda data: data + b"\n")),
    "a byte order mark": _stored(_unpacked(lambda data: b"\xef\xbb\xbf" + data)),
    "white space": _stored(_unpacked(lambda data: data.replace(b',"', b',            "'))),
    "two gzip members": _stored(lambda data: data + gzip.compress(b"", mtime=0)),
    "a file's name in the header": _stored(lambda data: data[:3] + b"\x08" + data[4:10] + b"x\0" + data[10:]),
    "gzip that is cut": _stored(lambda data: data[:-4]),
    "another folder": _moved,
    "a padded number": _renamed,
    "a stray artifact": _beside,
    "no record": lambda answer: answer.update(record=None),
    "a record's state": _record(state="running"),
    "a record's length": _record(length=99),
    "a record's parts": _record(parts=2),
    "a record's counters": _record(counters={"states": {}, "types": {}, "max_level": 0}),
    "a record's segments": _record(segments=["commodity"]),
    "a record's expiry": _record(expires_at="2023-11-22T22:13:20.123456Z"),
    "a record's time": _record(first_at="14 November 2023"),
    "a record that ends before it starts": _record(last_at="2023-11-14T22:13:19.000000Z"),
    "a field that is missing": lambda answer: answer["record"].pop("bucket_name"),
}


@pytest.fixture(scope="module")
def right_answer() -> Iterator[Answer]:
    """What is right, for one case: a block with a result."""
    (case,) = (case for case in CASES if case.name == "write/a-block")
    yield dict(adapter.answer(case.kind, case.given))
    configuration.reset()


@pytest.mark.parametrize("fault", FAULTS.values(), ids=list(FAULTS))
def test_a_wrong_answer_fails(fault: Fault, right_answer: Answer) -> None:
    """Each single fault of a writer is seen, in an answer that is right but for that."""
    (case,) = (case for case in CASES if case.name == "write/a-block")
    answer = copy.deepcopy(right_answer)
    assert differences(case.kind, case.given, case.expected, answer) == []
    fault(answer)
    (outcome,) = run(lambda _: answer, [case])
    assert outcome.verdict == "failed"
    assert outcome.remarks


@pytest.mark.parametrize(
    "data", [b'[{"a":NaN}]', b'[{"a":"\\ud800"}]', b'["\\u0000"]', b'["\xff"]', b'[{"a":1}', b"{}"]
)
def test_parts_that_others_refuse_fail(data: bytes) -> None:
    """NaN, lone surrogates, NUL, bytes that are not UTF-8, JSON that is cut, and what is no array."""
    with pytest.raises(MismatchError):
        strict_part(data, "data_1.json", compressed=False)


@pytest.mark.parametrize("case", [case for case in CASES if case.kind != "write"], ids=lambda case: case.name)
def test_an_answer_without_anything_fails(case: Case) -> None:
    """An implementation that answers nothing, or an error where there is none, passes no case."""
    for answer in ({}, {"error": ""}):
        (outcome,) = run(lambda _, answer=answer: answer, [case])  # type: ignore[misc]
        assert outcome.verdict == "failed"


def test_a_clock_of_its_own_may_say_any_time() -> None:
    """An implementation that cannot set its clock is not held to the case's times, but to what must hold of them."""
    (case,) = (case for case in CASES if case.name == "write/times")
    answer = dict(adapter.answer(case.kind, {**case.given, "time": case.given["time"] + 10**15}))
    assert differences(case.kind, case.given, case.expected, answer) != []
    answer["clock"] = "own"
    assert differences(case.kind, case.given, case.expected, answer) == []
    answer["record"]["expires_at"] = answer["record"]["first_at"]
    assert differences(case.kind, case.given, case.expected, answer) != []
