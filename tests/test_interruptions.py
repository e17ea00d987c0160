"""A time limit may strike while our code runs: it reaches the job all the same, and the trace is closed and whole."""

from __future__ import annotations

import linecache
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from opentelemetry.context import get_current
from spans import Sdk
from workshop import messages

import trifle_otel as trifle
from trifle_otel import interruptions
from trifle_otel.integrations.attempts import Job, Options, end, start
from trifle_otel.recording import Recording, open_recordings
from trifle_otel.redaction import Redactor
from trifle_otel.runtime import forget_callbacks, runtime

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="time limits by signals are Unix's")


class OutOfTime(Exception):  # noqa: N818 - frameworks call theirs so
    """What a framework's handler raises: an `Exception`, as RQ's and Celery's are."""


struck: list[int] = []


def out_of_time(number: int, frame: FrameType | None) -> None:
    """A handler of a framework. A time is over once."""
    if not struck:
        struck.append(number)
        raise OutOfTime(f"after {number}")


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    """A time limit as RQ sets it."""
    struck.clear()
    before = signal.signal(signal.SIGALRM, out_of_time)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
    forget_callbacks()


def strike(*_: Any) -> Any:
    """The time is over, right here."""
    signal.raise_signal(signal.SIGALRM)


@pytest.fixture(autouse=True)
def still_open() -> Callable[[], list[str]]:
    """Gives the keys of traces that a test has left open: other tests leave some, to see what becomes of them."""
    before = set(open_recordings())
    return lambda: [job.key for job in open_recordings() if job not in before]


def strike_at_7(value: object) -> str:
    """A serializer to which one value takes too long."""
    return str(strike() if value == 7 else value)


class Striking:
    """A value in whose own code the time is over."""

    def __repr__(self) -> str:
        strike()
        return "never"

    def __fspath__(self) -> str:
        return repr(self)

    def __iter__(self) -> Iterator[Any]:
        return iter(repr(self))

    __str__ = __repr__


def in_a_block_that_returns_it() -> None:
    """By a decorator."""
    trifle.block("price")(Striking)()


def in_a_blocks_result() -> None:
    """By hand."""
    with trifle.block("price") as step:
        step.result(Striking())


def in_a_result_of_the_trace() -> None:
    """By hand."""
    job = trifle.current()
    assert job is not None
    job.root.result(Striking())


def striking() -> Any:
    """One of them, in a place for others."""
    return Striking()


PLACES: dict[str, tuple[dict[str, Any], Callable[[], object]]] = {
    "a line": ({}, lambda: trifle.trace(striking())),
    "a block's message": ({}, lambda: trifle.trace(striking(), lambda: 7)),
    "a block's result": ({}, lambda: trifle.trace("price", Striking)),
    "a decorated function's result": ({}, in_a_block_that_returns_it),
    "a step's result": ({}, in_a_blocks_result),
    "the trace's result": ({}, in_a_result_of_the_trace),
    "a serializer": ({"serializer": strike_at_7}, lambda: trifle.trace("price", lambda: 7)),
    "a tag": ({}, lambda: trifle.tag(striking())),
    "an artifact's source": ({}, lambda: trifle.artifact("page.html", striking())),
    "meta": ({}, lambda: trifle.tracer("inner", meta=[striking()]).__enter__()),
    "a context": ({}, lambda: trifle.tracer("inner", context={"by": striking()}).__enter__()),
    "tags": ({}, lambda: trifle.tracer("inner", tags=striking()).__enter__()),
    "a reference": ({}, lambda: trifle.tracer("inner", reference=striking()).__enter__()),
    "a context of everybody's": ({"context": strike}, lambda: None),
    "days of retention": ({"retention": strike}, lambda: None),
    "a rule of one's own": ({"redaction": Redactor(custom=strike)}, lambda: None),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_time_limit_reaches_the_job(place: str) -> None:
    """Wherever in our code it strikes: what was being recorded then is none of the job's concern, its end is."""
    settings, job = PLACES[place]
    trifle.configure("memory:", **settings)
    with pytest.raises(OutOfTime), trifle.tracer("job"):
        job()
    assert trifle.current() is None


@pytest.mark.parametrize("event", ["liftoff", "bump", "wrapup"])
@pytest.mark.parametrize("mode", ["live", "deferred"])
def test_in_a_callback_it_reaches_the_job_too(event: Any, mode: Any, still_open: Callable[[], list[str]]) -> None:
    """And the trace, interrupted at its start or at its end, is closed."""
    archive = trifle.configure("memory:", default_mode=mode)
    trifle.on(event, strike)

    def run() -> None:
        sink = runtime().sink
        assert sink is not None
        with trifle.tracer("job") as job:
            sink.bump(job)

    with pytest.raises(OutOfTime):
        run()
    assert still_open() == []
    assert trifle.flush(5)
    assert [record.state for record in archive.search().records] == ["success" if event == "wrapup" else "error"]


def test_a_job_that_has_failed_already_is_told_of_once() -> None:
    """Interrupted at the end of a trace, what was recorded of the job's own exception is not recorded again."""
    archive = trifle.configure("memory:")
    trifle.on("wrapup", strike)
    with pytest.raises(OutOfTime), trifle.tracer("job"):
        raise ValueError("no price")
    assert trifle.flush(5)
    (record,) = archive.search().records
    assert record.state == "error"
    told = messages(archive, record)
    assert [message.partition("\n")[0] for message in told] == [
        "Exception: no price",
        "Traceback (most recent call last):",
    ]


def test_a_handler_of_errors_that_takes_too_long_is_interrupted() -> None:
    """It is called in the job's time."""
    trifle.configure("memory:", error_handler=strike, context=lambda: {"none": 1 // 0})
    with pytest.raises(OutOfTime), trifle.tracer("job"):
        pass


def test_faults_of_values_are_no_interruptions() -> None:
    """What a job's value raises of itself stays with us, be the handler of a signal installed or not."""

    class Odd:
        def __repr__(self) -> str:
            raise OutOfTime("of its own")

    archive = trifle.configure("memory:")
    with trifle.tracer("job"):
        trifle.trace("price", Odd)
    assert messages(archive)[-2:] == [
        "price ↵",
        "↳ <test_interruptions.test_faults_of_values_are_no_interruptions.<locals>.Odd: repr raised OutOfTime>",
    ]


class Limit:
    """A handler that is an object, or a method of one."""

    def strikes(self, number: int, frame: FrameType | None) -> None:
        """Raise."""
        out_of_time(number, frame)

    __call__ = strikes


@pytest.mark.parametrize("handler", [partial(out_of_time), Limit(), Limit().strikes])
def test_handlers_of_every_kind_are_known(handler: Any) -> None:
    """Functions, methods, objects that can be called, partial ones."""
    signal.signal(signal.SIGALRM, handler)
    trifle.configure("memory:")
    with pytest.raises(OutOfTime), trifle.tracer("job"):
        trifle.trace("price", Striking)


def test_kinds_that_are_named_pass_in_every_thread() -> None:
    """A timer's thread raises in the job's thread, out of no handler."""
    trifle.configure("memory:")
    found: list[str] = []

    def job() -> None:
        with trifle.tracer("job"):
            trifle.trace("price", OddOfThread)
        found.append("went on")

    class OddOfThread:
        def __repr__(self) -> str:
            raise TimeoutError

    def run() -> None:
        try:
            job()
        except TimeoutError:
            found.append("ended")

    for wanted in ("went on", "ended", "went on"):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        assert found.pop() == wanted
        (interruptions.remove if wanted == "ended" else interruptions.add)(TimeoutError)
    interruptions.remove(TimeoutError)


class StrikeAt:
    """Has the time be over at the n-th line of our code that runs from the beginning of a trace's end, in this thread.

    Python strikes between two calls, and not where a `with` is about to release what it holds.
    """

    def __init__(self, place: int) -> None:
        self.left = place
        self.began = False

    def __enter__(self) -> StrikeAt:
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        self.began = self.began or code is Recording.end.__code__
        if not self.began or "trifle_otel" not in code.co_filename or "interruptions" in code.co_filename:
            return None
        if event == "line" and not linecache.getline(code.co_filename, frame.f_lineno).lstrip().startswith("with "):
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)
                raise OutOfTime
        return self._trace


@pytest.mark.parametrize("step", [9, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("settings", ["archive alone", "spans", "deferred"])
def test_at_whatever_line_a_traces_end_is_interrupted(
    settings: str, step: int, own_folder: Path, still_open: Callable[[], list[str]]
) -> None:
    """It ends: with all of its lines, once, in the archive; and the interruption goes on to the job."""
    interruptions.add(OutOfTime)
    provider = Sdk().provider if settings == "spans" else None
    archive = trifle.configure(
        own_folder / "archive",
        tracer_provider=provider,
        default_mode="deferred" if settings == "deferred" else "live",
        bump_every=1000,
    )
    before = get_current()
    place, more, swallowed = 1 - step, True, []
    try:
        while more:
            place += step
            job = trifle.tracer(f"jobs/{place}")
            job.__enter__()
            trifle.trace("one", lambda: trifle.trace("two"))
            strikes = StrikeAt(place)
            try:
                with strikes:
                    job.__exit__(None, None, None)
            except OutOfTime:
                pass
            else:
                swallowed.append(place)
            more = strikes.left <= 0
            assert get_current() is before, place
    finally:
        interruptions.remove(OutOfTime)
    assert place > 200
    assert swallowed == [place]
    assert still_open() == []
    assert trifle.flush(10)
    found = {record.key: record for record in archive.search(limit=1000).records}
    assert set(found) == {f"jobs/{number}" for number in range(1, place + 1, step)}
    for record in found.values():
        assert record.state == "success"
        assert messages(archive, record) == ["one ↴", "two", "one ↵", "↳ None"], record.key
    assert runtime().troubles.counts == {}


# -- an attempt at a job


def test_an_attempt_whose_result_takes_too_long_is_ended() -> None:
    """Its end says what came in between, and that is raised."""
    archive = trifle.configure("memory:")
    attempt = start(Job(system="rq", name="price"), Options())
    assert attempt is not None
    with pytest.raises(OutOfTime):
        attempt.succeed(Striking())
    assert trifle.current() is None
    assert messages(archive)[0] == f"Exception: after {int(signal.SIGALRM)}"


def test_an_attempt_is_ended_where_finding_out_how_is_interrupted() -> None:
    """Whatever a framework's own code is asked then."""
    archive = trifle.configure("memory:")
    attempt = start(Job(system="rq", name="price"), Options())
    assert attempt is not None
    with pytest.raises(OutOfTime):
        end(attempt, strike)
    assert trifle.current() is None
    assert messages(archive)[0] == f"Exception: after {int(signal.SIGALRM)}"


def test_a_selector_that_takes_too_long_ends_the_job(still_open: Callable[[], list[str]]) -> None:
    """It runs in the job's time."""
    trifle.configure("memory:")
    with pytest.raises(OutOfTime):
        start(Job(system="rq", name="price"), Options(select=strike))
    assert still_open() == []
