# SPDX-License-Identifier: MIT
"""The vocabulary of procbus: event, handler, delivery, outcome, receipt, and small tools."""
