"""The journal of accepted requests: what the next receiver finds, whatever the moment at which one died."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trifle_otel.receiver import journal as request_journal
from trifle_otel.receiver.journal import Entry, Journal


def opened(root: Path) -> Journal:
    """A journal that is open."""
    journal = Journal(root)
    journal.open()
    return journal


def write(journal: Journal, request: bytes, spans: int) -> Entry:
    """Keep a request, which has so many spans."""
    entry = journal.write(request)
    entry.left = spans
    return entry


def requests_in(root: Path) -> list[Path]:
    """Files of requests, of all receivers."""
    return sorted(root.glob("*/*.pb"))


def test_a_request_is_there_until_its_last_span_is_done(tmp_path: Path) -> None:
    """With its bytes, in a file of its own; the folder goes with the last of them."""
    journal = opened(tmp_path)
    entry = write(journal, b"request", 3)
    assert entry.read() == b"request"
    assert journal.size == 7
    journal.settle({entry: [0, 2]})
    assert len(requests_in(tmp_path)) == 1
    journal.settle({entry: [1]})
    assert requests_in(tmp_path) == []
    assert journal.size == 0
    journal.close()
    assert list(tmp_path.iterdir()) == []


def test_the_next_receiver_finds_what_is_left_and_what_of_it_is_done(tmp_path: Path) -> None:
    """In the order in which it came, with the numbers of the spans that are archived."""
    journal = opened(tmp_path)
    first, second, third = (write(journal, body, 10) for body in (b"first", b"second", b"third"))
    journal.settle({first: [0, 1, 2, 7], second: range(10)})
    journal.settle({third: [9]})
    journal.close()

    following = opened(tmp_path)
    found = list(following.adopt())
    assert [(entry.read(), entry.done) for entry in found] == [(b"first", {0, 1, 2, 7}), (b"third", {9})]
    assert following.size == 10
    following.close()
    third_receiver = opened(tmp_path)
    again = list(third_receiver.adopt())
    assert [(entry.read(), entry.done) for entry in again] == [(b"first", {0, 1, 2, 7}), (b"third", {9})]
    for entry in again:
        third_receiver.remove(entry)
    third_receiver.close()
    assert list(tmp_path.iterdir()) == []


def test_what_is_done_takes_no_memory_while_it_waits(tmp_path: Path) -> None:
    """A million spans that are archived are a few numbers in the entries of their requests."""
    journal = opened(tmp_path)
    entry = write(journal, b"large", 1_000_001)
    for first in range(0, 1_000_000, 100_000):
        journal.settle({entry: range(first, first + 100_000)})
    journal.close()
    following = opened(tmp_path)
    (found,) = following.adopt()
    assert found.runs == [[0, 999_999]]
    assert len(found.done) == 1_000_000
    following.close()


def test_the_journal_of_one_that_lives_is_left_alone(tmp_path: Path) -> None:
    """Its lock is held; it can go on."""
    first, second = opened(tmp_path), opened(tmp_path)
    entry = write(first, b"x", 1)
    assert list(second.adopt()) == []
    assert entry.read() == b"x"
    second.close()
    first.close()


def test_what_was_being_written_is_no_request(tmp_path: Path) -> None:
    """A receiver that died while it wrote had not answered: the file under its temporary name is removed."""
    journal = opened(tmp_path)
    whole = write(journal, b"whole", 1)
    folder = Path(whole.path).parent
    (folder / ".0000000002.pb").write_bytes(b"ha")
    journal.close()
    following = opened(tmp_path)
    assert [entry.read() for entry in following.adopt()] == [b"whole"]
    following.close()
    assert not folder.exists()


@pytest.mark.parametrize(
    "line", [b"[[1,[[0,1]]]]\n[[1,[[2", b"[[1,[[0,1]]]]\n\xff\x00", b'[[1,[[0,1]]]]\n[1]\n"x"\n{}\n']
)
def test_a_torn_line_of_the_log_counts_for_nothing(tmp_path: Path, line: bytes) -> None:
    """Nothing had gone that it was about."""
    journal = opened(tmp_path)
    entry = write(journal, b"x", 9)
    Path(entry.path).with_name("done-0000000009.log").write_bytes(line)
    journal.close()
    following = opened(tmp_path)
    assert [found.done for found in following.adopt()] == [{0, 1}]
    following.close()


def test_logs_go_with_the_requests_that_they_are_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They do not grow for ever while a receiver runs."""
    monkeypatch.setattr(request_journal, "LOG_SIZE", 100)
    journal = opened(tmp_path)
    before: list[Entry] = []
    for _ in range(200):
        before.append(write(journal, b"x", 2))
        if len(before) > 3:
            journal.settle({before[-4]: [1], before[-3]: [0]})
    assert len(list(tmp_path.glob("*/*.log"))) < 8
    journal.close()


def test_a_request_that_cannot_be_read_is_put_aside(tmp_path: Path) -> None:
    """Out of the way of the next receiver, and kept for people."""
    journal = opened(tmp_path)
    where = journal.set_aside(write(journal, b"odd", 1))
    assert Path(where).read_bytes() == b"odd"
    journal.close()
    following = opened(tmp_path)
    assert list(following.adopt()) == []
    following.close()


def test_a_full_disk_is_an_error_and_leaves_everything_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line that does not fit is not there in part: nothing is removed, and the next one stands alone."""
    journal = opened(tmp_path)
    first, second = write(journal, b"first", 2), write(journal, b"second", 2)
    journal.settle({first: [0]})
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:3]))
    with pytest.raises(OSError, match="no room"):
        journal.settle({first: [1], second: [0, 1]})
    monkeypatch.undo()
    journal.settle({second: [0]})
    journal.close()
    following = opened(tmp_path)
    assert [entry.done for entry in following.adopt()] == [{0}, {0}]
    following.close()


def test_a_request_for_which_there_is_no_room_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What did fit of it does not fill the disk until the next receiver."""
    journal = opened(tmp_path)
    real = os.write

    def write_some(descriptor: int, data: bytes) -> int:
        if len(data) < 10:
            raise OSError(errno.ENOSPC, "no room")
        return real(descriptor, data[:5])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write_some)
        with pytest.raises(OSError, match="no room"):
            journal.write(b"ten bytes.")
    assert [path.name for path in tmp_path.glob("*/*")] == ["lock"]
    assert journal.size == 0
    journal.close()


def test_the_log_of_a_request_that_is_put_aside_goes_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does where the request is done."""
    monkeypatch.setattr(request_journal, "LOG_SIZE", 1)
    journal = opened(tmp_path)
    first, second = write(journal, b"first", 2), write(journal, b"second", 2)
    journal.settle({first: [0]})
    journal.settle({second: [0]})
    assert len(list(tmp_path.glob("*/*.log"))) == 2
    journal.set_aside(first)
    assert len(list(tmp_path.glob("*/*.log"))) == 1
    journal.close()


# --- Any moment


class Died(Exception):  # noqa: N818 - it is no error
    """The process is gone."""


executions = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=5)
"""For each execution the requests that its spans came with."""


@settings(max_examples=25, deadline=None)
@given(executions=executions, order=st.randoms(use_true_random=False), second=st.integers(0, 12))
def test_an_execution_is_found_whole_or_not_at_all(executions: list[list[int]], order: Any, second: int) -> None:
    """However its spans are spread over requests, and at whichever step receivers die: all are left, or none is."""
    requests: dict[int, list[int]] = {}  # numbers of the executions that its spans belong to
    for execution, places in enumerate(executions):
        for place in places:
            requests.setdefault(place, []).append(execution)
    died, first = True, 0
    while died:
        with tempfile.TemporaryDirectory() as folder:
            journal = opened(Path(folder))
            for place in sorted(requests):
                journal.write(bytes(requests[place]))
            journal.close()
            died = dies(Path(folder), executions, order, first)
            dies(Path(folder), executions, order, second)
            dies(Path(folder), executions, order, 1000)
            last = opened(Path(folder))
            assert list(last.adopt()) == []
            last.close()
        first += 1
    assert first > len(requests)


def dies(folder: Path, executions: list[list[int]], order: Any, death: int) -> bool:
    """A receiver takes over what is there, archives in any order, and dies at a change of the disk, or not at all."""
    journal = opened(folder)
    with pytest.MonkeyPatch.context() as patch:
        die_at(patch, death)
        try:
            take_over(journal, executions, order)
        except Died:
            return True
        finally:
            patch.undo()
            journal.close()
    return False


def die_at(patch: pytest.MonkeyPatch, step: int) -> None:
    """Raise `Died` in the place of that change of the disk, and of all that follow."""
    steps = count()

    def changing(real: Callable[..., Any]) -> Callable[..., Any]:
        def change(*arguments: Any) -> Any:
            if next(steps) >= step:
                raise Died
            return real(*arguments)

        return change

    for name in ("write", "unlink", "replace"):
        patch.setattr(os, name, changing(getattr(os, name)))


def take_over(journal: Journal, executions: list[list[int]], order: Any) -> None:
    """What a receiver does with what others have left."""
    held: dict[int, dict[Entry, list[int]]] = {}
    for entry in journal.adopt():
        body = entry.read()
        entry.left = len(body) - len(entry.done)
        if not entry.left:
            journal.remove(entry)
        for number, execution in enumerate(body):
            if number not in entry.done:
                held.setdefault(execution, {}).setdefault(entry, []).append(number)
    for execution, places in held.items():
        assert sum(map(len, places.values())) == len(executions[execution]), "an execution was cut"
    for execution in order.sample(sorted(held), len(held)):
        journal.settle(held[execution])
