# SPDX-License-Identifier: MIT
"""``python -m procbus``."""

from __future__ import annotations

import sys

from procbus.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
