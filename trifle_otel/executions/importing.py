"""Import: spans out of files become archived traces, as those do that a receiver takes in.

Files are `otlp.files`' business, what an execution is `assemble`'s, how one is archived `archiving`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from trifle_otel.executions.archiving import archive
from trifle_otel.executions.assemble import Assembler, Execution
from trifle_otel.runtime import Runtime
from trifle_otel.span_data import SpanData

SETTLE = 120.0
"""Seconds of the spans' own time that a trace whose root was read waits for more of its spans."""
WAIT = 3600.0
"""Seconds of the spans' own time that spans wait for their root."""

_LONGEST_STEP = 60.0  # seconds that one line may move the time: one span of a far future must not close all traces
_SHIP_EVERY = 500  # traces; what waits for a remote archive is bounded, and above that dropped


@dataclass
class Tally:
    """What an import has done.

    Attributes:
        traces: how many were archived.
        known: how many were left out: this library recorded them, and they are archived in full.
        spans: how many were read.
        failed: how many could not be archived.
        oldest_ns: when the oldest span began: Unix time in nanoseconds; None where there was none.
    """

    traces: int = 0
    known: int = 0
    spans: int = 0
    failed: int = 0
    oldest_ns: int | None = None


class Import:
    """Makes executions of spans, and archives them.

    Time goes as it went when the spans ended, so that a long file does not have to fit into memory, and a trace
    is closed as it would have been then. The same spans give the same references: importing twice does no harm.

    Args:
        runtime: what archives.
        ship: called now and then, so that what waits for a remote archive does not become too much.

    Attributes:
        tally: what was done so far.
    """

    def __init__(self, runtime: Runtime, ship: Callable[[], object]) -> None:
        self.tally = Tally()
        self._runtime = runtime
        self._ship = ship
        self._time = _RecordedTime()
        self._assembler = Assembler(self._deliver, settle=SETTLE, wait=WAIT, clock=self._time)

    @property
    def waiting(self) -> int:
        """How many spans are held, since more of their traces may come."""
        return self._assembler.waiting

    @property
    def remarks(self) -> Mapping[str, int]:
        """What the assembler has to say of the spans, and how often: repeated, refused, closed early."""
        return {remark: times for remark, times in self._assembler.counts.items() if times}

    def add(self, spans: Iterable[SpanData]) -> None:
        """Take in the spans of a line."""
        spans = list(spans)
        tally = self.tally
        tally.spans += len(spans)
        for span in spans:
            began = span.start_ns or span.end_ns
            if began:  # else nobody knows
                tally.oldest_ns = began if tally.oldest_ns is None else min(began, tally.oldest_ns)
        self._assembler.add(spans)
        self._time.advance(max((span.end_ns for span in spans), default=0))
        self._assembler.sweep()

    def finish(self) -> None:
        """Archive what is left: no more spans come."""
        self._assembler.flush()

    def _deliver(self, execution: Execution) -> None:
        try:
            reference = archive(execution, self._runtime)
        except Exception as error:  # of one trace; the others are imported all the same
            self._runtime.troubles.report("a trace could not be archived", error)
            self.tally.failed += 1
            return
        if reference is None:
            self.tally.known += 1
            return
        self.tally.traces += 1
        if self.tally.traces % _SHIP_EVERY == 0:
            self._ship()


class _RecordedTime:
    """A clock that goes as the spans' own times do, but never back, and never far in one step. Seconds.

    Where one line is far ahead, its clock may be wrong; where the next one is too, nothing happened for a while.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._latest = 0  # Unix time in nanoseconds; 0: none yet
        self._was_ahead = False

    def __call__(self) -> float:
        return self._seconds

    def advance(self, ns: int) -> None:
        """Let it be that late: Unix time in nanoseconds, 0 where it is not known."""
        if not self._latest:
            self._latest = ns
        step = (ns - self._latest) / 1e9
        is_ahead = step > _LONGEST_STEP
        if is_ahead:
            step = _LONGEST_STEP
        if step > 0:
            self._seconds += step
            self._latest = self._latest + int(step * 1e9) if is_ahead and not self._was_ahead else ns
        self._was_ahead = is_ahead
