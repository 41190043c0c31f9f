# SPDX-License-Identifier: MIT
"""The pool behind the cpu lane: a seam with one module for each engine."""
