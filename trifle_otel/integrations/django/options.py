"""What Django's setting `TRIFLE` says, checked. What is done about it is the app's and the middleware's business.

    TRIFLE = {
        "archive": "/var/traces", "retention": 30,           # and all other settings of `trifle_otel.configure`
        "select": "shop.tracing.wanted", "mode": "live",     # which requests are traced, and how: select, key, mode
        "tasks": {"retention": 90},                          # the same of Django's tasks; False: they are not traced
    }

Callables may be given by their dotted path: what they need is often not there yet where settings are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from django.conf import settings as django_settings
from django.utils.module_loading import import_string

from trifle_otel.errors import ConfigurationError
from trifle_otel.integrations.web import WebOptions
from trifle_otel.settings import Settings

NAME: Final = "TRIFLE"
TASKS: Final = "tasks"
OF_REQUESTS: Final[tuple[str, ...]] = ("select", "key", "mode")
OF_TASKS: Final = ("select", "key", "mode", "retention")
OF_PROCESS: Final = tuple(field.name for field in fields(Settings))

_CALLABLE: Final = frozenset(
    {"select", "key", "retention", "context", "serializer", "error_handler", "foreign_spans", "redaction"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """The setting `TRIFLE`, taken apart.

    Attributes:
        settings: what `configure` is called with.
        requests: which requests are traced, and how.
        tasks: what `instrument` is called with; None: tasks are not traced.
    """

    settings: dict[str, Any]
    requests: WebOptions
    tasks: dict[str, Any] | None


def given() -> Given:
    """What `TRIFLE` says. Raises `ConfigurationError` for what is unknown or wrong; it names what is allowed."""
    found = getattr(django_settings, NAME, None)
    checked = _checked(NAME, {} if found is None else found, {*OF_PROCESS, *OF_REQUESTS, TASKS})
    requests: dict[str, Any] = {name: checked.pop(name) for name in OF_REQUESTS if name in checked}
    tasks = checked.pop(TASKS, None)
    _check_options(NAME, requests)
    return Given(settings=checked, requests=WebOptions(**requests), tasks=_of_tasks(tasks))


def _of_tasks(found: Any) -> dict[str, Any] | None:
    if found is False:
        return None
    where = f'{NAME}["{TASKS}"]'
    checked = _checked(where, {} if found is None or found is True else found, OF_TASKS)
    _check_options(where, checked, fixed_key=True)
    return checked


def _checked(where: str, found: Any, allowed: Iterable[str]) -> dict[str, Any]:
    if not isinstance(found, Mapping):
        raise ConfigurationError(f"{where} is {found!r}; it must be a dictionary of settings")
    unknown = sorted(str(name) for name in found if name not in allowed)
    if unknown:
        raise ConfigurationError(f"no setting {unknown[0]!r} in {where}; allowed are {', '.join(sorted(allowed))}")
    return {name: _loaded(where, name, value) for name, value in found.items()}


def _loaded(where: str, name: str, value: Any) -> Any:
    """The value; the callable itself where its dotted path is given."""
    if name not in _CALLABLE or not isinstance(value, str) or "." not in value or "/" in value:
        return value
    try:
        return import_string(value)
    except ImportError as error:
        raise ConfigurationError(f'{where}["{name}"] is {value!r}, which cannot be imported: {error}') from error


def _check_options(where: str, options: Mapping[str, Any], *, fixed_key: bool = False) -> None:
    """What `configure` does not check: it would be an error of each request's, in a log that nobody reads."""
    if options.get("mode") not in (None, "live", "deferred"):
        raise ConfigurationError(f'{where}["mode"] is {options["mode"]!r}; it is live or deferred')
    for name in ("select", "key"):
        value = options.get(name)
        if value is None or callable(value) or (name == "key" and fixed_key and isinstance(value, str)):
            continue
        raise ConfigurationError(f'{where}["{name}"] is {value!r}; it must be callable, or the dotted path of such')
