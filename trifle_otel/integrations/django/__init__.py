"""Django: requests and tasks as traces, set up by Django's own settings. Each part has its module; here are the names.

    INSTALLED_APPS = [..., "trifle_otel.integrations.django"]               # configures, and traces tasks
    MIDDLEWARE = ["trifle_otel.integrations.django.TraceMiddleware", ...]   # traces requests
    TRIFLE = {"archive": "/var/traces", "select": "shop.tracing.wanted"}    # see `options`

Put the middleware first, or behind those that choose the URLconf of a request.
"""

from __future__ import annotations

from trifle_otel.errors import MissingDependency

try:
    from trifle_otel.integrations.django.middleware import TraceMiddleware
    from trifle_otel.integrations.django.tasks import instrument, uninstrument
except ModuleNotFoundError as missing:
    raise MissingDependency(f"tracing Django needs Django: pip install django ({missing})") from missing

__all__ = ["TraceMiddleware", "instrument", "uninstrument"]
