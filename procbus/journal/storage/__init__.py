# SPDX-License-Identifier: MIT
"""The files of a journal: the intake and the database."""
