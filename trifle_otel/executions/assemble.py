"""Executions out of spans that come in any order, in batches, late, twice, or not at all.

Pure: no I/O, no threads, and the clock is given. Spans are held until the local root that they hang on has come and
things are quiet, or until a limit of time or memory closes the execution. What becomes of one is `archiving`'s
business, where spans come from `span_exporter`'s, the receiver's or `importing`'s.

Spans of a trace id that hang together, by parents that have come or not, are one `fragments.Fragment`. Merging the
smaller into the larger keeps the work near to linear, whatever the order.
"""

from __future__ import annotations

import heapq
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from itertools import count, islice
from typing import Any, Final

from trifle_otel.executions.fragments import (
    KEPT_ROOTS,
    NO_SPAN,
    Closed,
    Execution,
    Fragment,
    Group,
    Origin,
    Trace,
    around,
    digest,
    forget,
    found,
    has_ids,
    is_local_root,
    weight,
)
from trifle_otel.span_data import SpanData

__all__ = ["EARLY", "NEVER", "OURS", "REFUSED", "REPEATED", "Assembler", "Closed", "Execution", "Origin"]

OURS: Final = "trifle_otel"
"""Name of the instrumentation that makes our own spans."""

REFUSED: Final = "spans were refused: they have no valid ids"
REPEATED: Final = "spans came again, and were dropped"
EARLY: Final = "executions were closed early: more spans were held than `most_spans`"
NEVER: Final = "executions were closed without their root, which did not come in time"

_SPANS_OF_A_TRACE = 8  # that remembering an execution costs as much as
_COMPARED = 1000  # spans without a parent, with a root that is delivered
_MUCH = 1000  # times that may be noted in vain
_RESOURCES = 256  # that are known again without a look at what is in them


class Assembler:
    """Holds spans until their executions are complete. Thread-safe.

    `_lock` guards the state, and is not held while executions are delivered; `_turn` is, so that they are delivered
    one after the other, and all of them when `sweep` or `flush` returns.

    Args:
        deliver: called with each execution. It must not raise.
        dropped: called with spans that no execution will have: repeats, and those without valid ids.
        settle: seconds without another span after which an execution that has its root is complete.
        wait: seconds without another span of its process and trace after which what has no root is closed.
        most_spans: how many are held; above that the oldest executions are closed early. Large ones count as several.
        remembered: how many spans of executions that were delivered are known as such when they or their children come.
        runs: tells whether a trace id is known to be of something that still runs here: its spans wait on.
        clock: seconds that only grow.

    Attributes:
        counts: what was refused, dropped or closed early, and how often.
    """

    def __init__(
        self,
        deliver: Callable[[Execution], object],
        *,
        dropped: Callable[[Iterable[SpanData]], None] | None = None,
        settle: float = 2.0,
        wait: float = 3600.0,
        most_spans: int = 200_000,
        remembered: int = 200_000,
        runs: Callable[[str], bool] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._deliver = deliver
        self._dropped = dropped
        self._settle = settle
        self._wait = wait
        self._most = most_spans
        self._most_remembered = remembered
        self._runs = runs
        self._clock = clock
        self.forget()

    def forget(self) -> None:
        """Begin with nothing: in a forked child, what is held is its parent's."""
        self._lock = threading.Lock()
        self._turn = threading.RLock()
        self._traces: dict[str, Trace] = {}
        self._live: dict[Fragment, None] = {}  # the oldest first
        self._ending: dict[Fragment, None] = {}  # those of them that only wait for things to be quiet
        self._groups: dict[Group, None] = {}  # those with others
        # When they may be due at the soonest. What is not `timed` is not in it; what is, may be gone.
        self._due: list[tuple[float, int, Fragment | Group]] = []
        self._numbers = count()
        self._resources: dict[int, tuple[Mapping[str, Any], int]] = {}
        self._delivered: deque[Fragment] = deque()
        self._remembered = 0
        self._weight = 0
        self._waiting = 0
        self.counts: Counter[str] = Counter(dict.fromkeys((REFUSED, REPEATED, EARLY, NEVER), 0))

    @property
    def waiting(self) -> int:
        """Spans that are held."""
        return self._waiting

    def add(self, spans: Iterable[SpanData]) -> None:
        """Take spans in. What is too much is delivered at once; what has become complete, by the next `sweep`."""
        unwanted: list[SpanData] = []
        with self._lock:
            self._take(spans, self._clock(), unwanted)
            full = self._weight > self._most
        if unwanted and self._dropped is not None:
            self._dropped(unwanted)
        if full:
            with self._turn:
                with self._lock:
                    closed = self._close_oldest()
                self._hand_on(closed)

    def sweep(self) -> float:
        """Deliver what is due; seconds until the next may be, infinite where nothing is held."""
        with self._turn:
            while True:
                with self._lock:
                    now = self._clock()
                    closed = self._close_due(now)
                    if not closed:
                        return self._due[0][0] - now if self._due else math.inf
                self._hand_on(closed)

    def flush(self, *, roots_alone: bool = False) -> None:
        """Deliver everything now, or (`roots_alone`) all executions whose root has come."""
        with self._turn:
            with self._lock:
                ending = list(self._ending)
            for fragment in ending:
                with self._lock:
                    closed = [self._close(fragment, "flush", adopt=not roots_alone)] if fragment in self._ending else []
                self._hand_on(closed)
            if not roots_alone:
                with self._lock:
                    closed = [
                        execution for group in list(self._groups) for execution in self._close_group(group, "flush")
                    ]
                self._hand_on(closed)

    def _hand_on(self, executions: list[Execution]) -> None:
        for execution in executions:
            self._deliver(execution)

    # What follows is called under `_lock`. Taking spans in:

    def _take(self, spans: Iterable[SpanData], now: float, unwanted: list[SpanData]) -> None:
        trace: Trace | None = None
        group: Group | None = None
        trace_id = resource = None
        for span in spans:
            if not has_ids(span):
                self.counts[REFUSED] += 1
                unwanted.append(span)
                continue
            if trace is None or span.trace_id != trace_id:
                trace_id = span.trace_id
                trace, group = self._traces.get(trace_id), None
                if trace is None:
                    trace = self._traces[trace_id] = Trace(trace_id)
            if group is None or span.resource is not resource:
                resource = span.resource
                group = self._group(trace, resource)
            if not self._place(trace, group, span, now):
                self.counts[REPEATED] += 1
                unwanted.append(span)
                if not group.used:  # repeats of many resources would leave as many groups
                    del trace.groups[self._resources[id(resource)][1]]
                    group = None

    def _group(self, trace: Trace, resource: Mapping[str, Any]) -> Group:
        known = self._resources.get(id(resource))
        if known is None or known[0] is not resource:
            if len(self._resources) >= _RESOURCES:
                self._resources.clear()
            known = self._resources[id(resource)] = (resource, digest(resource))
        group = trace.groups.get(known[1])
        if group is None:
            group = trace.groups[known[1]] = Group(trace)
        return group

    def _place(self, trace: Trace, group: Group, span: SpanData, now: float) -> bool:
        """Put a span into its fragment; False for one that has come already."""
        known, span_id = trace.known, span.span_id
        fragment, earlier = known.get(span_id), None
        if fragment is not None:
            fragment = found(fragment)
            if span_id not in fragment.missing:
                return False
            fragment.missing.discard(span_id)
            if fragment.delivered:
                fragment, earlier = None, fragment
        is_root = is_local_root(span)
        if not is_root:
            above = self._above(trace, group, span, fragment)
            fragment = above if fragment is None or fragment is above else self._merge(fragment, above)
        elif fragment is None:
            fragment = self._begin(group)
        known[span_id] = fragment
        if earlier is not None:
            self._follow(fragment, earlier)
        self._put(fragment, span, is_root, now)
        return True

    def _above(self, trace: Trace, group: Group, span: SpanData, below: Fragment | None) -> Fragment:
        """The fragment that the parent of a span is in, or will be in; `below`: the one that waits for the span."""
        parent = span.parent_id or NO_SPAN
        above = trace.known.get(parent)
        if above is not None:
            above = found(above)
            if not above.delivered:
                return above
            if parent not in above.missing:
                return self._late(above, group)
            above.missing.discard(parent)
        fragment = self._begin(group) if below is None else below
        fragment.missing.add(parent)
        trace.known[parent] = fragment
        if above is not None:
            self._follow(fragment, above)
        return fragment

    def _put(self, fragment: Fragment, span: SpanData, is_root: bool, now: float) -> None:
        fragment.spans.append(span)
        fragment.last = now
        heavy = weight(span)
        fragment.weight += heavy
        self._weight += heavy
        self._waiting += 1
        if span.scope == OURS:
            fragment.ours = True
        if is_root:
            fragment.root = span
            self._has_parent(fragment)
            self._ending[fragment] = None
        if fragment.root is None and fragment.belongs_to is None:
            group = fragment.group
            group.last = now
            if not group.timed:
                self._time(group, now + self._wait)
        elif not fragment.timed:
            self._time(fragment, now + self._settle)

    def _begin(self, group: Group) -> Fragment:
        fragment = Fragment(group)
        self._live[fragment] = None
        self._orphan(fragment)
        return fragment

    def _orphan(self, fragment: Fragment) -> None:
        """Note that a fragment has no root yet."""
        group = fragment.group
        if group.orphans is None:
            group.orphans = {}
            self._groups[group] = None
        group.orphans[fragment] = None

    def _has_parent(self, fragment: Fragment) -> None:
        """Note that a fragment has its root, or is part of another."""
        group = fragment.group
        orphans = group.orphans
        if orphans is not None:
            orphans.pop(fragment, None)
            if not orphans:
                group.orphans = None
                del self._groups[group]

    def _merge(self, one: Fragment, other: Fragment) -> Fragment:
        """One fragment of two."""
        large, small = (one, other) if len(one.spans) >= len(other.spans) else (other, one)
        del self._live[small]
        for fragment in (large, small):
            self._ending.pop(fragment, None)
            self._has_parent(fragment)
        large.spans += small.spans
        large.missing |= small.missing
        large.weight += small.weight
        large.last = max(large.last, small.last)
        large.ours = large.ours or small.ours
        large.root = large.root or small.root
        large.belongs_to = large.belongs_to or small.belongs_to
        large.earlier = (*large.earlier, *small.earlier)[:KEPT_ROOTS]
        small.into = large
        small.spans, small.missing = [], set()
        if large.root is None and large.belongs_to is None:
            self._orphan(large)
        else:
            self._ending[large] = None
            if not large.timed:
                self._time(large, large.last + self._settle)
        return large

    def _late(self, delivered: Fragment, group: Group) -> Fragment:
        """Where spans go that hang on what was delivered."""
        late = delivered.late
        if late is not None:
            late = found(late)
        if late is None or late.delivered:
            late = delivered.late = Fragment(group)
            late.belongs_to = delivered.belongs_to or delivered.origin
            late.ours = delivered.ours
            self._live[late] = self._ending[late] = None
        return late

    def _follow(self, fragment: Fragment, earlier: Fragment) -> None:
        """Note that what was delivered is a part of the same."""
        fragment.ours = fragment.ours or earlier.ours
        if earlier.origin is not None and len(fragment.earlier) < KEPT_ROOTS:
            fragment.earlier = (*fragment.earlier, earlier.origin)

    # Closing:

    def _time(self, waiting: Fragment | Group, due: float) -> None:
        waiting.timed = True
        heapq.heappush(self._due, (due, next(self._numbers), waiting))
        if len(self._due) > 4 * len(self._live) + _MUCH:
            self._forget_times()

    def _forget_times(self) -> None:
        """Forget when what is gone would have been due: most of it is delivered long before."""
        kept: list[tuple[float, int, Fragment | Group]] = []
        for entry in self._due:
            waiting = entry[2]
            if waiting in self._groups if isinstance(waiting, Group) else waiting in self._ending:
                kept.append(entry)
            else:
                waiting.timed = False
        self._due[:] = kept
        heapq.heapify(self._due)

    def _close_due(self, now: float) -> list[Execution]:
        """Close the next that is due."""
        due = self._due
        while due and due[0][0] <= now:
            waiting = heapq.heappop(due)[2]
            waiting.timed = False
            if isinstance(waiting, Group):
                if waiting in self._groups:
                    closed = self._close_if_abandoned(waiting, now)
                    if closed:
                        return closed
            elif waiting in self._ending:
                if waiting.last + self._settle <= now:
                    return [self._close(waiting, "late" if waiting.root is None else "quiet")]
                self._time(waiting, waiting.last + self._settle)
        return []

    def _close_if_abandoned(self, group: Group, now: float) -> list[Execution]:
        if group.last + self._wait <= now:
            if self._runs is None or not self._runs(group.trace.trace_id):
                self.counts[NEVER] += 1
                return self._close_group(group, "time")
            group.last = now
        self._time(group, group.last + self._wait)
        return []

    def _close_oldest(self) -> list[Execution]:
        """Make room: somewhat more than is needed now, so that this is not done for each span."""
        closed: list[Execution] = []
        enough = self._most - self._most // 20
        for oldest in list(self._live):
            if self._weight <= enough:
                break
            if oldest in self._ending:
                closed.append(self._close(oldest, "memory"))
            elif oldest in self._live:
                closed += self._close_group(oldest.group, "memory")
        self.counts[EARLY] += len(closed)
        return closed

    def _close(self, fragment: Fragment, why: Closed, *, adopt: bool = False) -> Execution:
        """Close an execution that has its root, or whose root is delivered.

        Spans whose parent is not there belong to it where its time encloses theirs, and where their parent cannot be
        one that still runs: in the process that the whole trace began in, or (`adopt`) when no more spans come.
        """
        root, group = fragment.root, fragment.group
        if root is not None and group.orphans is not None and (adopt or not root.parent_id):
            for orphan in list(islice(reversed(group.orphans), _COMPARED)):
                if all(root.start_ns <= span.start_ns and span.end_ns <= root.end_ns for span in orphan.spans):
                    fragment = self._merge(fragment, orphan)
        return self._closed(fragment, why)

    def _close_group(self, group: Group, why: Closed) -> list[Execution]:
        """Close what has no root: as one execution, or as one for each that it belongs to by its time."""
        joined: dict[Origin | None, Fragment] = {}
        for orphan in list(group.orphans or ()):
            origin = around(orphan, group)
            other = joined.get(origin)
            joined[origin] = orphan if other is None else self._merge(other, orphan)
        for origin, fragment in joined.items():
            fragment.belongs_to = origin
            fragment.ours = fragment.ours or (origin is not None and origin.ours)
        return [self._closed(fragment, why) for fragment in joined.values()]

    def _closed(self, fragment: Fragment, why: Closed) -> Execution:
        """Take a fragment out of what is held, and remember it."""
        spans, fragment.spans = fragment.spans, []
        root, fragment.root = fragment.root, None
        missing = tuple(sorted(fragment.missing))
        execution = Execution(root, spans, missing, why, fragment.belongs_to, fragment.earlier, fragment.ours)
        del self._live[fragment]
        self._ending.pop(fragment, None)
        self._has_parent(fragment)
        self._weight -= fragment.weight
        self._waiting -= len(spans)
        fragment.delivered = True
        fragment.origin = execution.origin
        fragment.ids = tuple([span.span_id for span in spans])
        group = fragment.group
        if root is not None:
            if group.roots is None:
                group.roots = deque(maxlen=KEPT_ROOTS)
            group.roots.append(fragment.origin)
        self._remember(fragment)
        return execution

    def _remember(self, fragment: Fragment) -> None:
        self._delivered.append(fragment)
        self._remembered += _SPANS_OF_A_TRACE + len(fragment.ids)
        while self._remembered > self._most_remembered:
            oldest = self._delivered.popleft()
            self._remembered -= _SPANS_OF_A_TRACE + len(oldest.ids)
            forget(oldest)
            if not oldest.group.trace.known:
                self._traces.pop(oldest.group.trace.trace_id, None)
