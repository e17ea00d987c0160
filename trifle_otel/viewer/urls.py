"""The viewer's own URLs, below whatever path it is mounted at; parts of paths and values are quoted here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from urllib.parse import quote, urlencode

from starlette.types import Scope

STATIC = Path(__file__).parent / "static"

Params = Mapping[str, "str | int | Iterable[str] | None"]


@dataclass(frozen=True, slots=True)
class Urls:
    """Makes URLs.

    Attributes:
        root: the path that the viewer is mounted at, without a slash at its end.
    """

    root: str = ""

    def list(self, params: Params | None = None) -> str:
        """Of the list of traces."""
        return f"{self.root}/{query(params)}"

    def trace(self, reference: str, params: Params | None = None, *, line: int | None = None) -> str:
        """Of a trace, at a line."""
        anchor = "" if line is None else f"#L{line}"
        given = dict(params or {}) if line is None else {**(params or {}), "line": line}
        return f"{self._trace(reference)}{query(given)}{anchor}"

    def line(self, reference: str, number: int, params: Params | None = None) -> str:
        """Of one line of it, whole."""
        return f"{self._trace(reference)}/lines/{number}{query(params)}"

    def text(self, reference: str, number: int) -> str:
        """Of the bytes of that line."""
        return f"{self._trace(reference)}/lines/{number}/text"

    def artifact(self, reference: str, name: str, params: Params | None = None) -> str:
        """Of the page about an artifact."""
        return f"{self._trace(reference)}/artifacts/{quote(name)}{query(params)}"

    def data(self, reference: str, name: str, params: Params | None = None) -> str:
        """Of the bytes of an artifact."""
        return f"{self._trace(reference)}/data/{quote(name)}{query(params)}"

    def replay(self, reference: str) -> str:
        """Of what sends a trace once more."""
        return f"{self._trace(reference)}/replay"

    def compare(self, left: str, right: str, params: Params | None = None) -> str:
        """Of the comparison of two traces."""
        return f"{self.root}/compare{query({'left': left, 'right': right, **(params or {})})}"

    def static(self, name: str) -> str:
        """Of a file of the viewer's own; another one whenever its contents are."""
        return f"{self.root}/static/{name}?v={version(name)}"

    def _trace(self, reference: str) -> str:
        return f"{self.root}/traces/{quote(reference, safe='')}"


def query(params: Params | None) -> str:
    """A query string, with its question mark; what is None or empty is left out."""
    pairs: list[tuple[str, str]] = []
    for name, value in (params or {}).items():
        if value is None or value == "":
            continue
        if isinstance(value, str | int):
            pairs.append((name, str(value)))
        else:
            pairs.extend((name, each) for each in value)
    return f"?{urlencode(pairs, errors='backslashreplace')}" if pairs else ""


def urls_of(scope: Scope) -> Urls:
    """URLs for whoever asks with this request."""
    return Urls(quote(str(scope.get("root_path", "")).rstrip("/")))


def path_of(scope: Scope) -> str:
    """The whole path that was asked for, quoted: servers differ in whether `path` has the root in it."""
    root, path = str(scope.get("root_path", "")).rstrip("/"), str(scope["path"])
    whole = path if not root or path == root or path.startswith(f"{root}/") else f"{root}{path}"
    return quote(f"/{whole.lstrip('/')}")  # two slashes at its beginning would lead to another host


@lru_cache(maxsize=16)
def version(name: str) -> str:
    """What changes whenever a file of the viewer's own does."""
    return blake2b((STATIC / name).read_bytes(), digest_size=6).hexdigest()
