"""What `opentelemetry-instrument` sets up without code: an instrumentor for each framework, named in `INSTRUMENTORS`.

Each calls `instrument()` of the framework's module here, where the framework is installed. This module alone needs
`opentelemetry-instrumentation`, which is there where that command is.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final, NamedTuple

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]

logger = logging.getLogger("trifle_otel")


class Row(NamedTuple):
    """A framework: our module for it, the modules of which any is it, its distribution ("" in Python itself)."""

    module: str
    framework: str
    distribution: str


INSTRUMENTORS: Final = {
    "CeleryInstrumentor": Row("celery", "celery", "celery"),
    "RQInstrumentor": Row("rq", "rq", "rq"),
    "DramatiqInstrumentor": Row("dramatiq", "dramatiq", "dramatiq"),
    "HueyInstrumentor": Row("huey", "huey", "huey"),
    "TaskiqInstrumentor": Row("taskiq", "taskiq", "taskiq"),
    "ArqInstrumentor": Row("arq", "arq", "arq"),
    "ProcrastinateInstrumentor": Row("procrastinate", "procrastinate", "procrastinate"),
    "APSchedulerInstrumentor": Row("apscheduler", "apscheduler", "apscheduler"),
    "DjangoInstrumentor": Row("django", "django.tasks django_tasks", "django"),
    "LoggingInstrumentor": Row("logging", "logging", ""),
}


class FrameworkInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Sets up one framework. What goes wrong is logged once, and keeps nobody else from being set up."""

    row: Row

    def instrumentation_dependencies(self) -> Collection[str]:
        """The framework's distribution."""
        return [self.row.distribution] if self.row.distribution else []

    def _instrument(self, **_: Any) -> None:
        """Where the framework is installed: `opentelemetry-instrument` asks for all, and checks none of them."""
        if _is_installed(self.row):
            self._call("instrument")

    def _uninstrument(self, **_: Any) -> None:
        if _is_installed(self.row):
            self._call("uninstrument")

    def _call(self, name: str) -> None:
        try:
            getattr(import_module(f"trifle_otel.integrations.{self.row.module}"), name)()
        except Exception as error:  # a version that is too old, perhaps: the program runs on without it
            logger.warning("trifle_otel could not %s %s: %r", name, self.row.module, error)


def _is_installed(row: Row) -> bool:
    for name in row.framework.split():
        try:
            if find_spec(name) is not None:
                return True
        except ModuleNotFoundError:  # not even the package that it would be in
            pass
    return False


def _made(name: str) -> type[FrameworkInstrumentor]:
    return type(name, (FrameworkInstrumentor,), {"row": INSTRUMENTORS[name], "__module__": __name__})


CeleryInstrumentor = _made("CeleryInstrumentor")
RQInstrumentor = _made("RQInstrumentor")
DramatiqInstrumentor = _made("DramatiqInstrumentor")
HueyInstrumentor = _made("HueyInstrumentor")
TaskiqInstrumentor = _made("TaskiqInstrumentor")
ArqInstrumentor = _made("ArqInstrumentor")
ProcrastinateInstrumentor = _made("ProcrastinateInstrumentor")
APSchedulerInstrumentor = _made("APSchedulerInstrumentor")
DjangoInstrumentor = _made("DjangoInstrumentor")
LoggingInstrumentor = _made("LoggingInstrumentor")
