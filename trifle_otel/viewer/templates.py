"""Pages out of templates. What they show is made visible and escaped here, whatever a template forgets."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.responses import Response
from starlette.types import Scope

from trifle_otel.records import ERROR, RUNNING, SUCCESS, WARNING, TraceRecord
from trifle_otel.viewer.urls import urls_of
from trifle_otel.wording import call, count, duration, size, visible

FOLDER = Path(__file__).parent / "templates"
ICONS = {SUCCESS: "✓", WARNING: "!", ERROR: "✗", RUNNING: "●"}


def page(
    scope: Scope,
    template: str,
    values: Mapping[str, Any],
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A page, for whoever asks with this request."""
    text = environment().get_template(template).render(urls=urls_of(scope), **values)
    # A lone surrogate would be refused; what is shown went through `visible`, which leaves none, or came by a request.
    data = text.encode("utf-8", "backslashreplace")
    return Response(data, status, dict(headers or {}), media_type="text/html; charset=utf-8")


@lru_cache(maxsize=1)
def environment() -> Environment:
    """The templates, with what they may call."""
    made = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        call=lambda record: short(call(record), 400),
        given=given,
        short=short,
        size=size,
        milliseconds=milliseconds,
        utc=utc,
        iso=iso,
        state_icon=lambda state: ICONS.get(state, "?"),
        state_class=state_class,
        problems=problems,
    )
    made.globals["count"] = count
    return made


def _shown(value: object) -> object:
    """What a template gives out: text without anything that would reorder or hide it. Escaping follows."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def given(value: object) -> Markup:
    """The value of an input, escaped and else just as it is: made visible, it would come back as another one."""
    return escape(value)


def short(text: str, most: int = 200) -> str:
    """A text that stands among others, cut where it is long."""
    return f"{text[:most]}…" if len(text) > most else text


def milliseconds(amount: int) -> str:
    """A duration as records have it: whole milliseconds."""
    return duration(amount * 1_000_000) if amount else "< 1 ms"


def utc(moment: datetime) -> str:
    """A time to the second, in UTC, which pages say once."""
    return f"{moment.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S}"


def iso(moment: datetime) -> str:
    """A time for machines."""
    return moment.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")


def state_class(state: str) -> str:
    """The class of a state in style sheets: nothing of what was recorded becomes one."""
    return f"is-{state}" if state in (*ICONS, "debug", "entries") else "is-other"


def problems(record: TraceRecord) -> list[tuple[str, int]]:
    """How many errors and warnings the counters of a record tell of."""
    states = record.counters.get("states")
    counted = [(state, states.get(state)) for state in (ERROR, WARNING)] if isinstance(states, dict) else []
    return [(state, amount) for state, amount in counted if isinstance(amount, int) and amount > 0]
