# SPDX-License-Identifier: MIT
"""The vocabulary of procbus: its nouns, and the small tools that they need."""
