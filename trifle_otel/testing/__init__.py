"""For tests of what stands behind a contract: a store or an index of your own is one that passes these.

Subclass `StoreContract` or `IndexContract` in a test file, and give it the fixture `store` or
`index`; `docs/drivers.md` has an example. Needs pytest, and nothing else of this library's test suite.
"""

import pytest

# before the imports: so a contract that is broken tells which values it saw, as a test of one's own does
pytest.register_assert_rewrite("trifle_otel.testing.indexes", "trifle_otel.testing.stores")

from trifle_otel.testing.indexes import IndexContract  # noqa: E402
from trifle_otel.testing.samples import (  # noqa: E402
    START,
    expected,
    pages,
    random_query,
    random_record,
    run_at_once,
    sample_record,
)
from trifle_otel.testing.stores import StoreContract, contents, local_folder  # noqa: E402

__all__ = [
    "START",
    "IndexContract",
    "StoreContract",
    "contents",
    "expected",
    "local_folder",
    "pages",
    "random_query",
    "random_record",
    "run_at_once",
    "sample_record",
]
