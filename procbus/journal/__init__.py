# SPDX-License-Identifier: MIT
"""The journal: events and outcomes that survive the process, in an SQLite file and its intake."""
