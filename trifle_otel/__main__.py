"""`python -m trifle_otel`: the same as the command `trifle-otel`."""

from __future__ import annotations

import sys

from trifle_otel.cli import main

if __name__ == "__main__":
    sys.exit(main())
