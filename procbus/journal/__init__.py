# SPDX-License-Identifier: MIT
"""The journal: what must survive the process, in an SQLite file and the intake beside it."""
