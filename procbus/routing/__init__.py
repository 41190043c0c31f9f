# SPDX-License-Identifier: MIT
"""Which handlers take an event."""
