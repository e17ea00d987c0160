"""The examples that the package carries, for `trifle-otel demo`; no code of its own.

A wheel has them beside this file. In a checkout they lie where people read them, in the repository's
folder `examples`, and this package looks there.
"""

from __future__ import annotations

from pathlib import Path

_CHECKOUT = Path(__file__).parents[2] / "examples"
if (_CHECKOUT / "price_calculation.py").is_file():
    __path__.append(str(_CHECKOUT))
