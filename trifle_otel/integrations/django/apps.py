"""The Django app: sets this process up as the setting `TRIFLE` says. What that may say is in `options`."""

from __future__ import annotations

from django.apps import AppConfig

from trifle_otel import configure
from trifle_otel.integrations.django import tasks
from trifle_otel.integrations.django.options import given


class TrifleConfig(AppConfig):  # type: ignore[misc]
    """Named in INSTALLED_APPS as `trifle_otel.integrations.django`."""

    name = "trifle_otel.integrations.django"
    label = "trifle_otel"
    verbose_name = "Trifle"

    def ready(self) -> None:
        """Set up, once all apps are there. Raises `ConfigurationError` for a setting that is unknown or wrong."""
        found = given()
        configure(**found.settings)
        if found.tasks is not None and (found.tasks or tasks.are_installed()):
            tasks.instrument(**found.tasks)
