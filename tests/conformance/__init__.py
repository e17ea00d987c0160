"""A conformance suite of the Trifle format, for implementations in any language: `python -m tests.conformance COMMAND`.

`cases` holds what is asked and what is expected, as JSON; `runner` asks and compares; `adapter` is our own side. How
to write one for another implementation: `docs/conformance.md`. Nothing here but `adapter` uses `trifle_otel`.
"""
