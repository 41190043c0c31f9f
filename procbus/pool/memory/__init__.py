# SPDX-License-Identifier: MIT
"""Shared memory for large events and results, which would be slow to send through a pipe."""
