# SPDX-License-Identifier: MIT
"""A bus seen as a `concurrent.futures.Executor`."""
