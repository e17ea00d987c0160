"""The layers of the design: which module may import which, read from the sources and seen in a fresh interpreter.

A module without a row in `LAYERS` fails: whoever adds one says where it belongs. Names that only
annotations use (`if TYPE_CHECKING`) bind no module of ours to another; of other packages they do.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = "trifle_otel"


def package_folder() -> Path:
    """Where the package is installed, found without importing it: a broken one must not hide what is wrong here."""
    spec = importlib.util.find_spec(ROOT)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


PACKAGE = package_folder()


class Layer(NamedTuple):
    """What a module may import: ours by name below the package, others' by the names that `package_of` gives."""

    own: str = ""
    others: str = ""


PLAIN = "errors interruptions records references strict_json encoding conventions values redaction settings runtime"
CONTRACTS = "stores.contract indexes.contract"
JOBS = "recording live_spans wrapping calls packing"
STORED = "errors records references strict_json encoding plain_files"
COMMANDS = (
    "checkup archive reading queries outline heartbeat wording tallies comparison configuration recording"
    " grep patterns following"
    " arrangement differences value_trees unfolding pictures replaying.replay receiver.server span_exporter"
    " delivery shipper spool metrics otlp.endpoint"
    " otlp.sending otlp.files executions.importing"
)
SHOWN = (
    f"{STORED} archive reading queries outline arrangement heartbeat wording tallies comparison"
    " differences unfolding value_trees value_html pictures"
)

# "*" stands for this module's own folder's children, or for anything at all where it stands alone.
LAYERS = {
    # plain data and bytes: the standard library, and the fast JSON and gzip
    "errors": Layer(),
    "records": Layer(),
    "conventions": Layer(),
    "interruptions": Layer(),
    "references": Layer("errors interruptions"),
    "plain_files": Layer("errors"),
    "strict_json": Layer("errors", "orjson"),
    "shapes": Layer("strict_json", "msgspec"),
    "encoding": Layer("errors records references strict_json", "orjson isal"),
    "values": Layer("errors conventions strict_json encoding interruptions", "orjson"),
    "redaction_edits": Layer(),
    "redaction_rules": Layer("errors redaction_edits"),
    "redaction_keys": Layer("errors redaction_rules"),
    "redaction_text": Layer("errors redaction_edits redaction_rules redaction_keys"),
    "redaction_literals": Layer("records redaction_rules redaction_keys", "ahocorasick_rs"),
    "redaction": Layer(
        "errors interruptions strict_json values"
        " redaction_edits redaction_literals redaction_text redaction_rules redaction_keys"
    ),
    "settings": Layer("errors records conventions values redaction", "opentelemetry-api"),
    "runtime": Layer("errors interruptions records conventions values redaction settings"),
    # what a job calls: OpenTelemetry's API, nothing that does I/O
    "otel_context": Layer("", "opentelemetry-api"),
    "clock": Layer(PLAIN),
    "frames": Layer(f"{PLAIN} live_spans otel_context", "opentelemetry-api"),
    "recording": Layer(f"{PLAIN} frames live_spans pending_span otel_context", "opentelemetry-api"),
    "live_spans": Layer(f"{PLAIN} frames span_events log_events", "opentelemetry-api"),
    "span_events": Layer(PLAIN, "opentelemetry-api"),
    "pending_span": Layer(f"{PLAIN} live_spans span_events", "opentelemetry-api"),
    "log_events": Layer(f"{PLAIN} span_events otel_context", "opentelemetry-api"),
    "wrapping": Layer(f"{PLAIN} frames otel_context", "opentelemetry-api"),
    "given": Layer(PLAIN),
    "calls": Layer(f"{PLAIN} frames recording live_spans wrapping otel_context given", "opentelemetry-api"),
    "packing": Layer(f"{PLAIN} frames recording shapes"),
    "metrics": Layer(PLAIN, "opentelemetry-api"),
    # spans of the SDK, in and out
    "span_data": Layer(),
    "otlp": Layer(),
    "receiver": Layer(),
    "executions": Layer(),
    "replaying": Layer(),
    "summaries": Layer("values"),
    "executions.fragments": Layer("span_data"),
    "executions.assemble": Layer("executions.fragments span_data"),
    "executions.keys": Layer("references span_data values"),
    "executions.lines": Layer(f"{PLAIN} frames recording span_data summaries"),
    "executions.archiving": Layer(
        f"{PLAIN} executions.assemble executions.keys executions.lines frames given recording span_data"
    ),
    "span_processor": Layer(
        f"{PLAIN} frames recording live_spans otel_context summaries", "opentelemetry-api opentelemetry-sdk"
    ),
    "span_exporter": Layer(
        f"{PLAIN} executions.assemble configuration executions.archiving recording span_data",
        "opentelemetry-api opentelemetry-sdk",
    ),
    "otlp.repair": Layer("", "otlp protobuf"),
    "otlp.from_json": Layer("errors strict_json", "otlp protobuf"),
    "otlp.spans": Layer("errors span_data otlp.from_json otlp.repair", "otlp protobuf"),
    "receiver.answers": Layer("errors otlp.spans", "otlp protobuf googleapis"),
    "receiver.bodies": Layer("receiver.answers"),
    "receiver.over_http": Layer("receiver.answers receiver.bodies otlp.spans", "h11"),
    "receiver.over_grpc": Layer("receiver.answers receiver.bodies receiver.over_http otlp.spans", "grpc"),
    "receiver.metrics": Layer("conventions", "opentelemetry-api"),
    "receiver.journal": Layer("errors strict_json plain_files spool"),
    "receiver.claims": Layer("span_data otlp.spans receiver.journal", "otlp"),
    "receiver.intake": Layer(
        f"{PLAIN} span_data otlp.spans receiver.answers receiver.metrics receiver.journal receiver.claims",
        "opentelemetry-api otlp",
    ),
    "receiver.server": Layer(
        f"{PLAIN} executions.assemble executions.archiving delivery receiver.intake receiver.journal"
        " otlp.spans receiver.answers receiver.bodies receiver.over_http receiver.over_grpc",
        "grpc",
    ),
    "otlp.files": Layer("errors span_data strict_json otlp.spans"),
    "executions.importing": Layer(f"{PLAIN} span_data executions.assemble executions.archiving"),
    "replaying.lines": Layer(f"{PLAIN} outline span_data span_events"),
    "replaying.spans": Layer(f"{PLAIN} replaying.lines outline live_spans span_data span_events"),
    "otlp.writing": Layer("span_data strict_json", "otlp protobuf"),
    "otlp.endpoint": Layer("errors", "opentelemetry-api"),
    "otlp.sending": Layer("errors otlp.endpoint", "otlp protobuf googleapis requests grpc"),
    "replaying.replay": Layer(
        f"{PLAIN} archive replaying.spans otlp.endpoint otlp.sending otlp.writing span_data", "otlp protobuf"
    ),
    # storing: two contracts, the drivers behind them, and what knows the contracts alone
    "stores": Layer(),
    "stores.contract": Layer("errors records plain_files"),
    "stores.files": Layer(f"{STORED} stores.contract"),
    "stores.memory": Layer(f"{STORED} stores.contract"),
    "stores.objects": Layer(
        f"{STORED} stores.contract stores.lifecycle stores.object_driver stores.object_urls stores.parallel", "obstore"
    ),
    "indexes": Layer(),
    "tallies": Layer("records"),
    "indexes.contract": Layer("errors records tallies"),
    "indexes.memory": Layer(f"{STORED} tallies indexes.contract"),
    "indexes.sqlite": Layer(f"{STORED} tallies indexes.contract indexes.sqlite_rows indexes.sqlite_search", "sqlite3"),
    "indexes.sqlite_rows": Layer(f"{STORED} indexes.contract", "sqlite3"),
    "indexes.sqlite_search": Layer(f"{STORED} tallies indexes.contract indexes.sqlite_rows", "sqlite3"),
    "stores.lifecycle": Layer("errors stores.object_urls", "boto3 botocore"),
    "stores.object_driver": Layer("errors stores.contract stores.object_urls", "obstore"),
    "stores.object_urls": Layer("errors records stores.contract"),
    "stores.parallel": Layer("errors records plain_files stores.contract"),
    "indexes.remote": Layer("errors records"),
    "indexes.postgres_table": Layer(f"{STORED} tallies indexes.contract indexes.remote", "psycopg"),
    "indexes.mongo_documents": Layer(f"{STORED} indexes.contract indexes.remote", "pymongo bson"),
    "indexes.postgres": Layer(f"{STORED} tallies indexes.contract indexes.remote indexes.postgres_table", "psycopg"),
    "indexes.mongo": Layer(f"{STORED} indexes.contract indexes.remote indexes.mongo_documents", "pymongo bson"),
    "queries": Layer(STORED),
    "outline": Layer("errors records"),
    "heartbeat": Layer("records"),
    "pictures": Layer(),
    "wording": Layer(STORED),
    "comparison": Layer("records outline"),
    "arrangement": Layer("records outline reading"),
    "unfolding": Layer(f"{STORED} archive reading stores.contract"),
    "differences": Layer("value_trees"),
    "value_trees": Layer("wording"),
    "value_html": Layer("value_trees wording", "markupsafe"),
    "reading": Layer(f"{STORED} stores.contract"),
    "patterns": Layer("errors strict_json"),
    "part_lines": Layer(STORED, "msgspec"),
    "grep": Layer(f"{STORED} part_lines patterns reading stores.contract"),
    "following": Layer(f"{STORED} archive reading"),
    "reindex": Layer(f"{STORED} reading stores.contract"),
    "archive": Layer(f"{PLAIN} {CONTRACTS} queries reading reindex spool shipper configuration"),
    "closing": Layer(STORED),
    "parcels": Layer("records"),
    "spool": Layer(f"{PLAIN} plain_files parcels closing packing recording", "platformdirs"),
    "backlog": Layer(f"{STORED} parcels spool"),
    "adoption": Layer(f"{PLAIN} {CONTRACTS} plain_files stores.parallel parcels spool"),
    "payloads": Layer(f"{PLAIN} {CONTRACTS} adoption parcels spool"),
    "delivery": Layer(
        f"{PLAIN} {CONTRACTS} archive closing parcels spool shipper packing metrics recording clock",
        "opentelemetry-api",
    ),
    "checkup": Layer(f"{PLAIN} plain_files {CONTRACTS} archive spool"),
    "shipper": Layer(
        f"{PLAIN} {CONTRACTS} archive adoption backlog parcels payloads spool packing metrics recording",
        "opentelemetry-api",
    ),
    # the one place that knows everything
    "locations": Layer(
        f"{PLAIN} stores.files stores.memory stores.objects"
        " indexes.memory indexes.sqlite indexes.postgres indexes.mongo",
        "platformdirs",
    ),
    "configuration": Layer(
        f"{PLAIN} {CONTRACTS} {JOBS} locations metrics archive spool delivery shipper span_processor span_exporter",
        "opentelemetry-api opentelemetry-sdk",
    ),
    "": Layer(f"{PLAIN} {JOBS} archive delivery configuration span_processor span_exporter"),
    # above: whoever uses it
    "testing": Layer("testing.*", "pytest"),
    "testing.*": Layer(f"{PLAIN} {CONTRACTS} {JOBS} archive stores.memory indexes.memory testing.*", "pytest"),
    "integrations": Layer("integrations.*"),
    "integrations.*": Layer(
        f"{PLAIN} frames recording calls otel_context integrations integrations.* integrations.django.*", "*"
    ),
    "viewer": Layer(f"{SHOWN} viewer.*"),
    "viewer.*": Layer(f"{SHOWN} viewer viewer.*", "starlette uvicorn jinja2 markupsafe"),
    "cli": Layer(f"{PLAIN} {COMMANDS} cli.*", "rich cyclopts"),
    "cli.*": Layer(f"{PLAIN} {COMMANDS} cli cli.* examples examples.*", "rich cyclopts"),
    "cli.run": Layer(f"{PLAIN} {COMMANDS} cli cli.* integrations.executors", "cyclopts opentelemetry-api"),
    "cli.report_html": Layer(f"{STORED} {COMMANDS} value_html cli cli.*", "markupsafe"),
    "cli.ui": Layer(f"{PLAIN} {COMMANDS} cli cli.* viewer viewer.*", "cyclopts uvicorn"),
    "cli.rerun": Layer(f"{PLAIN} {COMMANDS} cli cli.*", "dramatiq"),
    "__main__": Layer("cli"),
    "examples": Layer(),
    "examples.*": Layer(" ", "currency_converter eu_vat_rates_data"),
}
MAY_IMPORT_THE_PACKAGE = ("integrations", "cli", "examples", "viewer")
SDK_IMPORTERS = {"span_processor", "span_exporter", "receiver.server", "configuration"}
COMPUTED_IMPORTS = {
    "",
    "configuration",
    "cli",
    "integrations.instrumentors",
}  # lazy public names, drivers by URL, a user's own application
READS_ENVIRONMENT = {"configuration", "cli.run"}  # a command is run in its own
# what these import of other packages, and the drivers, they import when they need it
LAZY = {"configuration", "cli"}
LAZY_PREFIXES = ("opentelemetry.sdk", "obstore", "psycopg", "pymongo", "rich", "cyclopts")
DRIVERS = tuple(
    f"{ROOT}.{name}" for name in LAYERS if name.startswith(("stores.", "indexes.")) and "contract" not in name
)

OTEL_PACKAGES = {
    "opentelemetry.sdk": "opentelemetry-sdk",
    "opentelemetry.semconv": "opentelemetry-sdk",  # comes with the SDK, not with the API
    "opentelemetry.exporter": "otlp",
    "opentelemetry.proto": "otlp",
    "opentelemetry.instrumentation": "opentelemetry-instrumentation",
    "opentelemetry": "opentelemetry-api",
    "google.protobuf": "protobuf",
    "google.rpc": "googleapis",
}


class Import(NamedTuple):
    """One imported name: `lazy` inside a function, `typing_only` under `if TYPE_CHECKING`."""

    name: str
    lazy: bool = False
    typing_only: bool = False


def imports_in(tree: ast.AST, package: str, lazy: bool = False, typing_only: bool = False) -> Iterator[Import]:
    """Every import below `tree`, wherever it stands; `from a import b` counts as `a.b`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, lazy, typing_only) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = absolute(node, package)
            yield from (Import(f"{start}.{alias.name}", lazy, typing_only) for alias in node.names)
        elif isinstance(node, ast.Call) and (name := imported_by_call(node)):
            yield Import(name, lazy, typing_only)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from imports_in(ast.Module(node.body, []), package, lazy, True)
            yield from imports_in(ast.Module(node.orelse, []), package, lazy, typing_only)
        else:
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from imports_in(node, package, lazy or inside, typing_only)


def absolute(node: ast.ImportFrom, package: str) -> str:
    """The module that `from … import` names, with leading dots resolved."""
    if not node.level:
        return node.module or ""
    parents = package.split(".")[: len(package.split(".")) - node.level + 1]
    return ".".join([*parents, *([node.module] if node.module else [])])


def is_import_call(node: ast.Call) -> bool:
    """Whether it calls `importlib.import_module` or `__import__`."""
    return ast.unparse(node.func).rpartition(".")[2] in ("import_module", "__import__")


def imported_by_call(node: ast.Call) -> str | None:
    """The module that `import_module("…")` names; None for other calls, and where the name is computed."""
    if is_import_call(node) and node.args and isinstance(node.args[0], ast.Constant):
        return str(node.args[0].value)
    return None


class Module(NamedTuple):
    """A source file of the package, named below it (`stores.files`; the package itself is the empty name)."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def package(self) -> str:
        """The package that relative imports start from."""
        folder = self.path.parent.relative_to(PACKAGE.parent)
        return ".".join(folder.parts)

    @property
    def imports(self) -> list[Import]:
        """All that it imports."""
        return list(imports_in(self.tree, self.package))

    @property
    def layer(self) -> Layer | None:
        """Its row: its own, or that of its folder."""
        folder = self.name.split(".")[0]
        return LAYERS.get(self.name) or LAYERS.get(f"{folder}.*" if "." in self.name else "-")


def read_modules() -> list[Module]:
    """Every source file of the package that is imported here."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found.append(Module(name, path, ast.parse(path.read_bytes())))
    return found


MODULES = read_modules()
NAMES = {module.name for module in MODULES}
every_module = pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name or ROOT)


def own_module(name: str) -> str | None:
    """The module of ours that an imported name lies in; None for other packages."""
    if name.split(".")[0] != ROOT:
        return None
    below = name.split(".")[1:]
    while below and ".".join(below) not in NAMES:
        below.pop()
    return ".".join(below)


def package_of(name: str) -> str | None:
    """The package of others' that an imported name belongs to; None for ours and for the standard library."""
    for prefix, package in OTEL_PACKAGES.items():
        if name == prefix or name.startswith(f"{prefix}."):
            return package
    top = name.split(".")[0]
    if top == "sqlite3":
        return top  # in the standard library, but a driver
    stdlib = top in sys.stdlib_module_names or top.startswith("_sysconfigdata")  # named after the platform
    return None if top == ROOT or stdlib else top


def allowed(name: str, row: str) -> bool:
    """Whether a row names it, or its folder with a star."""
    words = row.split()
    return name in words or (("." in name) and f"{name.rpartition('.')[0]}.*" in words)


@every_module
def test_every_module_belongs_to_a_layer(module: Module) -> None:
    """Each source file has a row that says what it may import."""
    assert module.layer is not None, f"{module.path} needs a row in LAYERS"


@every_module
def test_a_module_imports_only_ours_of_its_row(module: Module) -> None:
    """A module of ours reaches no other one of ours than those of its row, in functions neither."""
    row = module.layer or Layer()
    reached = {own_module(item.name) for item in module.imports if not item.typing_only} - {None, module.name}
    strangers = {name for name in reached if name and not allowed(name, row.own)}
    if "" in reached and not module.name.startswith(MAY_IMPORT_THE_PACKAGE):
        strangers.add(ROOT)
    assert strangers == set()


@every_module
def test_a_module_imports_only_others_of_its_row(module: Module) -> None:
    """A module of ours imports no other package than those of its row, for types neither."""
    row = module.layer or Layer()
    items = [item for item in module.imports if not (item.typing_only and item.name.startswith("typing_extensions."))]
    packages = {package_of(item.name) for item in items} - {None}
    assert {package for package in packages if row.others != "*" and package not in row.others.split()} == set()


@every_module
def test_the_sdk_is_imported_where_it_must_be_alone(module: Module) -> None:
    """The OpenTelemetry SDK is imported by the modules that stand between us and it, and by nobody else."""
    uses = any(package_of(item.name) == "opentelemetry-sdk" for item in module.imports)
    assert not uses or module.name in SDK_IMPORTERS


@every_module
def test_the_environment_is_read_in_one_place(module: Module) -> None:
    """Nothing but the configuration reads environment variables."""
    names = {ast.unparse(node) for node in ast.walk(module.tree) if isinstance(node, ast.Attribute)}
    imported = {item.name for item in module.imports}
    reads = (names | imported) & {"os.environ", "os.getenv", "os.environb"}
    assert not reads or module.name in READS_ENVIRONMENT


@every_module
def test_imports_can_be_read_from_the_source(module: Module) -> None:
    """A module's name is computed only where that is its job, so that the tests above see every import."""
    calls = [node for node in ast.walk(module.tree) if isinstance(node, ast.Call) and is_import_call(node)]
    computed = [ast.unparse(call) for call in calls if imported_by_call(call) is None]
    assert computed == [] or {module.name, module.name.split(".")[0]} & COMPUTED_IMPORTS


@every_module
def test_heavy_packages_are_imported_when_they_are_needed(module: Module) -> None:
    """Setting up, and the entry of the command line, load the SDK, drivers and optional packages inside functions."""
    eager = [item.name for item in module.imports if not item.lazy and not item.typing_only]
    heavy = [name for name in eager if name.startswith((*LAZY_PREFIXES, *DRIVERS))]
    assert heavy == [] or module.name not in LAZY


def test_modules_do_not_need_each_other_in_a_circle() -> None:
    """Imports at the top of modules form no circle."""
    needs = {
        module.name: {own_module(item.name) for item in module.imports if not item.lazy and not item.typing_only}
        - {None, "", module.name}
        for module in MODULES
    }
    while ready := {name for name, needed in needs.items() if not needed & needs.keys()}:
        needs = {name: needed for name, needed in needs.items() if name not in ready}
    assert needs == {}


def test_the_package_lists_names_and_computes_nothing() -> None:
    """`__init__` holds imports, `__all__` and the like, and at most the hook that loads names on demand."""
    for node in next(module for module in MODULES if module.name == "").tree.body:
        if isinstance(node, ast.FunctionDef):
            assert node.name in ("__getattr__", "__dir__")
        elif isinstance(node, ast.If):
            assert "TYPE_CHECKING" in ast.unparse(node.test)
        else:
            kinds = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.Expr)
            assert isinstance(node, kinds), ast.unparse(node)
            assert not isinstance(node, ast.Expr) or isinstance(node.value, ast.Constant)


def test_the_reader_of_imports_sees_every_form() -> None:
    """Plain, relative, nested, conditional, typed and called imports are found: no rule is passed by hiding."""
    source = """
import os.path, a.b as c
from . import sibling
from ..up import name
if TYPE_CHECKING:
    from typed import T
else:
    import untyped
try:
    import tried
except ImportError:
    import_module("called")
class C:
    import in_class
    def method(self):
        from deep import down
        importlib.import_module("lazy.call")
"""
    assert set(imports_in(ast.parse(source), "p.q")) == {
        Import("os.path"),
        Import("a.b"),
        Import("p.q.sibling"),
        Import("p.up.name"),
        Import("typed.T", typing_only=True),
        Import("untyped"),
        Import("tried"),
        Import("called"),
        Import("in_class"),
        Import("deep.down", lazy=True),
        Import("lazy.call", lazy=True),
    }


def modules_after(statement: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after a statement."""
    code = f"{statement}\nimport sys, json\nprint(json.dumps(list(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, check=True, timeout=30, text=True
    )
    return set(json.loads(done.stdout))


def test_importing_the_package_is_light() -> None:
    """`import trifle_otel` loads OpenTelemetry's API, fast JSON, gzip and search: no SDK, driver or framework."""
    ours = modules_after("import trifle_otel") - modules_after("import opentelemetry.trace, opentelemetry.metrics")
    packages = {package_of(name) for name in ours} - {None}
    assert packages <= {"opentelemetry-api", "orjson", "isal", "ahocorasick_rs", "platformdirs"}
    assert not ours & set(DRIVERS)
