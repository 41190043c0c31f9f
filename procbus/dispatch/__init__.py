# SPDX-License-Identifier: MIT
"""Into the bus and out of it: publishing, settling, retries and dead letters."""
