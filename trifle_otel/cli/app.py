"""The commands, put together. What each does is in its own module; exit codes are in `trifle_otel.cli`."""

from __future__ import annotations

from importlib.metadata import version

from cyclopts import App

_HELP = "Find and read the executions of background jobs, in an archive of the Trifle layout."
_COMMANDS = {
    "demo": "demo:demo",
    "ls": "listing:list_traces",
    "search": "listing:search",
    "show": "show:show",
    "reindex": "upkeep:reindex",
    "cleanup": "upkeep:cleanup",
    "recover": "upkeep:recover",
    "setup": "upkeep:setup",
}


def make_app() -> App:
    """All commands. Their modules are loaded when they are needed."""
    app = App(
        name="trifle-otel",
        help=_HELP,
        help_format="plaintext",
        version=lambda: version("trifle-otel"),
        suppress_keyboard_interrupt=False,
    )
    for name, target in _COMMANDS.items():
        app.command(f"{__package__}.{target}", name=name)
    return app


def run(arguments: list[str]) -> int:
    """Run the command that the arguments name, and give its exit code. Raises what it raises, and `CycloptsError`."""
    code = make_app()(
        arguments,
        exit_on_error=False,
        print_error=False,
        result_action="return_value",
    )
    return code if isinstance(code, int) else 0
