"""Targets: texts that people give or that jobs have recorded: URLs, patterns, values, secrets."""

from __future__ import annotations

import re
from contextlib import suppress

from trifle_otel import encoding, value_html, value_trees
from trifle_otel.errors import ConfigurationError, UsageError
from trifle_otel.indexes.remote import shown, split_options, without_secrets
from trifle_otel.locations import locate, open_index
from trifle_otel.locations import shown as shown_location
from trifle_otel.otlp.endpoint import endpoint_of
from trifle_otel.patterns import Pattern
from trifle_otel.redaction import Redactor
from trifle_otel.stores.object_urls import parse_object_url

from .inputs import choice, fields, text

_REPEATS = re.compile(r"[*+{]")
_REPEATED_GROUP = re.compile(r"\)[*+{?]")


def urls(data: bytes) -> None:
    """URLs of archives, indexes, object stores and endpoints."""
    url = text(data)
    assert all(isinstance(each, str) for each in (shown(url), shown_location(url), without_secrets(url, url)))
    with suppress(ConfigurationError):
        locate(url)
    with suppress(ConfigurationError):
        parse_object_url(url)
    with suppress(ConfigurationError):
        split_options(url, ("buckets", "table"))
    if not url.lower().startswith("mongodb"):  # its driver looks names up when it is made
        with suppress(ConfigurationError):
            open_index(url)
    given, headers = fields(data, 2)
    with suppress(UsageError):
        endpoint_of(text(given), variables={"HEADERS": text(headers)})


def patterns(data: bytes) -> None:
    """What `grep` looks for: the way that parses little finds what the plain one does.

    That a regular expression of one's own can take for ever is Python's, and not looked for here.
    """
    (fixed, ignore_case), data = choice(data, ((False, False), (False, True), (True, False), (True, True)))
    expression, message = (text(piece) for piece in fields(data, 2))
    pattern = Pattern(expression[:40], fixed=fixed, ignore_case=ignore_case)
    message = encoding.clean_text(message)[:400]
    if not fixed:
        if len(_REPEATS.findall(expression)) > 3 or _REPEATED_GROUP.search(expression):
            return
        message = message[:40]
    try:
        compiled = pattern.compiled
    except UsageError:
        return
    lines = [line for line in message.split("\n") if compiled.search(line)]
    assert pattern.lines(message) == lines
    entries = [{"at": 1, "message": "before"}, {"at": 2, "message": message}, {"at": 3, "message": "after"}]
    part = encoding.encode_part(entries, compress=False)
    if lines:
        assert pattern.may_be_in(part)
        assert pattern.may_be_in_text(message.encode())
        places = pattern.places(part)
        start, end = part.index(b'{"at":2,'), part.index(b',{"at":3,')
        assert places is None or any(start <= place < end for place in places)
    for line in lines:
        for first, last in pattern.spans(line):
            assert 0 <= first < last <= len(line)


def values(data: bytes) -> None:
    """Results as the viewer shows them: as trees."""
    value = value_trees.parse(text(data).encode("utf-8", "replace").decode())
    if value is not None:
        "\n".join(value_trees.lines(value)).encode()
        str(value_html.html(value)).encode()


def redaction(data: bytes) -> None:
    """Lines that may hold secrets: screening them twice is screening them once, and all at once as one by one."""
    given = encoding.clean_text(text(data))
    screened = _redactor.text(given)
    assert _redactor.text(screened) == screened
    (same,) = _redactor.texts([given])
    assert same == screened


_redactor = Redactor()
