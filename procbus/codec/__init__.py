# SPDX-License-Identifier: MIT
"""Turns objects into bytes and back, and finds the place of an object that cannot be pickled."""
