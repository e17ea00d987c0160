"""OpenTelemetry's current context, by the shortest way that leads there.

`get_current` and `attach` here are OpenTelemetry's. Where its context lives in one plain context
variable, as it does unless `OTEL_PYTHON_CONTEXT` names something else, they are that variable's own `get`
and `set`: two Python calls less, which is a fifth of the price of a line. Nothing is kept beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

from opentelemetry import context as otel
from opentelemetry.context.contextvars_context import ContextVarsRuntimeContext


def _variable() -> ContextVar[otel.Context] | None:
    """The context variable behind OpenTelemetry's context; None where it is kept in another way."""
    kept = getattr(otel, "_RUNTIME_CONTEXT", None)
    found = getattr(kept, "_current_context", None)
    if type(kept) is not ContextVarsRuntimeContext or type(found) is not ContextVar:
        return None
    return found if found.get() is otel.get_current() else None


_found = _variable()
get_current: Callable[[], otel.Context] = otel.get_current if _found is None else _found.get
"""The context that is current here: see `opentelemetry.context.get_current`."""
attach: Callable[[otel.Context], object] = otel.attach if _found is None else _found.set
"""Make a context current here: see `opentelemetry.context.attach`. Its token is of no use to us."""
