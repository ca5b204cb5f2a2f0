"""``python -m limbeck``: the same as ``limbeck``."""

from __future__ import annotations

import sys

from limbeck.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
