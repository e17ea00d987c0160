"""An execution that was made of spans, archived as if our own API had recorded it.

The same spans give the same reference, so that what comes twice is stored once; where a part of them comes again, what
is stored of all of them stays. What our own library has recorded is in
an archive already, and is left out. How spans become executions is `assemble`'s business, how they become lines
`lines`', where a recording goes that of the runtime's sink.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final

from trifle_otel import conventions as names
from trifle_otel.encoding import clean_text
from trifle_otel.executions.assemble import OURS, Execution, Origin
from trifle_otel.executions.keys import key_of
from trifle_otel.executions.lines import has_failed, lines_of, mend_times, outcome
from trifle_otel.frames import TEXT, Frame, Line
from trifle_otel.given import plain_key
from trifle_otel.recording import Recording
from trifle_otel.records import ERROR, SUCCESS, WARNING
from trifle_otel.references import derived_reference
from trifle_otel.runtime import Runtime
from trifle_otel.span_data import SpanData
from trifle_otel.values import json_of, plain_context, text_of

__all__ = ["INCOMPLETE", "archive", "is_recorded", "key_of", "reference_of"]

INCOMPLETE: Final = "incomplete"
"""First segment of the key of an execution whose root never came."""

_WHY: Final = {
    "quiet": "These spans came without their root",
    "late": "These spans came without their root",
    "time": "The root of these spans did not come in time",
    "memory": "The root of these spans had not come when too many spans were held",
    "flush": "The root of these spans had not come when all was archived that was there",
}
_LONGEST = 1000  # characters of an attribute in the record's context; the whole of it is a line then
_NUMBERS = {int, float, bool, type(None)}
_BITS = 64  # of an integer that is as it is in JSON
_MOST = 64  # attributes, links and ids there


def archive(execution: Execution, runtime: Runtime) -> str | None:
    """Archive an execution. It is durable when this returns.

    Gives its reference; None where it is not archived: our own library has recorded it, the setting `retention` says
    that nothing of it is kept, or there is no archive. Spans with impossible times are changed.
    """
    sink = runtime.sink
    if sink is None or is_recorded(execution):
        return None
    recording = _recording_of(execution, runtime)
    recording.settle_retention()
    if recording.ignored:
        return None
    recording.bucket = sink.place(recording)
    sink.finish(recording)
    return recording.reference


def is_recorded(execution: Execution) -> bool:
    """Whether our own library has recorded it into an archive, or what the spans in it belong to."""
    if not execution.ours:
        return False
    own = [span.attributes for span in execution.spans if span.scope == OURS and names.REFERENCE in span.attributes]
    # Where nothing was archived, the spans are all there is; a trace that still runs has its place, but not everywhere.
    return not own or any(names.ARCHIVE in attributes or names.PENDING in attributes for attributes in own)


def reference_of(origin: Origin) -> str:
    """The reference of an execution with this root: a ULID that sorts by its start."""
    return derived_reference(origin.start_ns // 1_000_000, f"{origin.trace_id}{origin.span_id}")


def _recording_of(execution: Execution, runtime: Runtime) -> Recording:
    """A recording that has ended, with all its lines."""
    root, spans = execution.root, execution.spans
    reference = reference_of(execution.origin)
    mend_times(spans)
    first = execution.key_span
    key = key_of(first) if root is not None else f"{INCOMPLETE}/{key_of(first)}"
    recording = Recording(runtime, plain_key(runtime.redactor, key), mode="deferred", reference=reference, meta=None)
    recording.derived = True
    recording.first_ns = first.start_ns
    recording.last_ns = first.end_ns if root is not None else max(span.end_ns for span in spans)
    recording.started = 1  # on no clock: an end of 0 would count as none
    recording.ended = 1 + recording.last_ns - recording.first_ns
    recording.trace_id = first.trace_id
    recording.span_id = first.span_id if root is not None else ""
    if has_failed(first):
        recording.state = ERROR
    else:
        recording.state = SUCCESS if root is not None or execution.closed == "late" else WARNING
    attributes, whole = _short_attributes(first) if root is not None else ({}, True)
    recording.context = _context(execution, runtime, attributes)
    recording.rest = _lines(execution, recording, attributes=not whole)
    recording.lines = None
    return recording


def _lines(execution: Execution, recording: Recording, *, attributes: bool) -> list[Line]:
    root = execution.root
    top = Frame(None, recording, 0, recording.key, SUCCESS)
    top.span_id = recording.span_id or sha256(recording.reference.encode()).hexdigest()[:16]
    start, end = recording.first_ns, recording.last_ns or recording.first_ns
    lines: list[Line] = [(start, text, state, TEXT, top) for text, state in _opening(execution)]
    lines += lines_of(root, execution.spans, execution.missing, top, attributes=attributes)
    if root is not None:
        text, state = outcome(root)
        lines.append((end, text, state, TEXT, top))
    return lines


def _opening(execution: Execution) -> list[tuple[str, str]]:
    """What the trace begins with: its name, and what there is to say of its parts."""
    root, missing, origin = execution.root, execution.missing, execution.belongs_to
    if root is not None:
        said = [(text_of(root.name) or "unnamed", SUCCESS)]
        if execution.closed == "memory":
            said.append(("Closed early, when too many spans were held: more of it may have come later", WARNING))
    elif origin is not None:
        said = [(f"These spans came when the trace that they belong to was archived: {reference_of(origin)}", SUCCESS)]
    else:
        said = [(_WHY[execution.closed], WARNING)]
    if missing:
        said.append((f"Missing: the parents of some spans never came ({_some(missing)})", WARNING))
    if execution.earlier:
        said.append((f"Earlier parts: {_some([reference_of(part) for part in execution.earlier])}", SUCCESS))
    return said


def _some(ids: tuple[str, ...] | list[str]) -> str:
    more = len(ids) - 10
    return ", ".join(ids[:10]) + (f" and {more} more" if more > 0 else "")


def _context(execution: Execution, runtime: Runtime, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The record's context: without secrets, and of bounded size, since it is in the index."""
    first, root = execution.key_span, execution.root
    said: dict[str, Any] = {"service": _service(first, runtime), "attributes": attributes}
    if root is not None:
        said.update(name=_short(text_of(root.name)), kind=root.kind, scope=_short(root.scope))
    fields = plain_context(_given(runtime), _without_empty(said))
    if runtime.redactor is not None:
        fields = runtime.redactor.structure(fields)
    return {**fields, **_without_empty(_ids(execution))}  # ids are no secrets, though they may look like some


def _ids(execution: Execution) -> dict[str, Any]:
    root, origin = execution.root, execution.belongs_to
    links = [] if root is None else root.links[:_MOST]
    return {
        "trace_id": execution.key_span.trace_id,
        "span_id": root and root.span_id,
        "parent_span_id": root and clean_text(root.parent_id or ""),
        "links": [{"trace_id": clean_text(link.trace_id), "span_id": clean_text(link.span_id)} for link in links],
        "missing": [clean_text(span_id) for span_id in execution.missing[:_MOST]],
        "belongs_to": origin and reference_of(origin),
        "earlier": [reference_of(part) for part in execution.earlier[:_MOST]],
    }


def _without_empty(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value}


def _given(runtime: Runtime) -> Mapping[str, Any]:
    """What the setting `context` says."""
    given = runtime.settings.context
    try:
        return plain_context(given() if callable(given) else given)
    except Exception as error:  # users' code: the trace is archived without it
        runtime.troubles.report("a context could not be had, or is no mapping", error)
        return {}


def _service(span: SpanData, runtime: Runtime) -> str:
    """The service's name, where somebody chose one."""
    name = text_of(span.resource.get("service.name"))
    if not name or name.startswith("unknown_service"):
        name = runtime.settings.service or ""
    return _short(name)


def _short_attributes(span: SpanData) -> tuple[dict[str, Any], bool]:
    """A span's attributes for the index, and whether that is all of them."""
    found: dict[str, Any] = {}
    whole = len(span.attributes) <= _MOST
    for name, value in list(span.attributes.items())[:_MOST]:
        short = value
        if isinstance(value, str):
            short = _short(value)
        elif type(value) not in _NUMBERS or (type(value) is int and value.bit_length() > _BITS):
            text = json_of(value)
            short = value if len(text) <= _LONGEST else _short(text)
        key = text_of(name)
        whole = whole and short is value and len(key) <= _LONGEST
        found[_short(key)] = short
    return found, whole


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
