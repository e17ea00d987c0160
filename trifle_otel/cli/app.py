"""The commands, put together. What each does is in its own module; exit codes are in `trifle_otel.cli`."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version

from cyclopts import App

from trifle_otel.cli.completion import completion
from trifle_otel.cli.demo import demo
from trifle_otel.cli.diffing import diff
from trifle_otel.cli.doctor import doctor
from trifle_otel.cli.grepping import grep
from trifle_otel.cli.importing import import_files
from trifle_otel.cli.listing import list_traces, search
from trifle_otel.cli.receive import receive
from trifle_otel.cli.replay import replay
from trifle_otel.cli.rerun import rerun
from trifle_otel.cli.run import run as run_command
from trifle_otel.cli.show import show
from trifle_otel.cli.stats import stats
from trifle_otel.cli.tailing import tail
from trifle_otel.cli.ui import ui
from trifle_otel.cli.upkeep import cleanup, recover, reindex, setup

_HELP = "Find and read the executions of background jobs, in an archive of the Trifle layout."
_COMMANDS: dict[str, Callable[..., int]] = {
    "demo": demo,
    "ls": list_traces,
    "search": search,
    "show": show,
    "tail": tail,
    "grep": grep,
    "diff": diff,
    "stats": stats,
    "ui": ui,
    "reindex": reindex,
    "cleanup": cleanup,
    "recover": recover,
    "setup": setup,
    "doctor": doctor,
    "replay": replay,
    "import": import_files,
    "receive": receive,
    "run": run_command,
    "rerun": rerun,
    "completion": completion,
}


def make_app() -> App:
    """All commands, in the order in which help lists them."""
    app = App(
        name="trifle-otel",
        help=_HELP,
        help_format="plaintext",
        version=lambda: version("trifle-otel"),
        suppress_keyboard_interrupt=False,
    )
    for order, (name, command) in enumerate(_COMMANDS.items()):
        app.command(command, name, sort_key=order)
    return app


def run(arguments: list[str]) -> int:
    """Run the command that the arguments name, and give its exit code. Raises what it raises, and `CycloptsError`."""
    result = make_app()(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    return result if isinstance(result, int) else 0
