# SPDX-License-Identifier: MIT
"""Worker processes: the interface of a pool, and one module for each engine behind it."""
