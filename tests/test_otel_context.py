"""The short way to OpenTelemetry's context gives and sets what OpenTelemetry's own functions do."""

from __future__ import annotations

import os
import subprocess
import sys

from opentelemetry import context as otel

from trifle_otel import otel_context as short


def test_both_ways_lead_to_one_context() -> None:
    """What one way makes current, the other gives."""
    before = otel.get_current()
    try:
        ours = otel.Context({"ours": 1})
        short.attach(ours)
        assert otel.get_current() is ours
        theirs = otel.Context({"theirs": 1})
        otel.attach(theirs)
        assert short.get_current() is theirs
    finally:
        otel.attach(before)


def test_the_installed_opentelemetry_lets_the_short_way_be_taken() -> None:
    """A release that keeps its context elsewhere is noticed here: lines would cost a fifth more."""
    assert short._found is not None


_ANOTHER = """
from contextvars import ContextVar
from opentelemetry import context
from opentelemetry.context.contextvars_context import ContextVarsRuntimeContext

class Counting(ContextVarsRuntimeContext):
    attached = 0
    def attach(self, given):
        Counting.attached += 1
        return super().attach(given)

context._RUNTIME_CONTEXT = Counting()
import trifle_otel as trifle
trifle.configure(archive="memory:")
with trifle.tracer("a/job"):
    with trifle.block("Step"):
        trifle.trace("line")
assert Counting.attached >= 4, Counting.attached
trifle.shutdown()
"""


def test_another_runtime_context_is_used_through_its_own_methods() -> None:
    """Where `OTEL_PYTHON_CONTEXT` names a context of another kind, its own methods are called."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("TRIFLE_", "OTEL_"))}
    subprocess.run([sys.executable, "-c", _ANOTHER], check=True, env=plain, timeout=30)
