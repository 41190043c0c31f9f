# SPDX-License-Identifier: MIT
"""The live view of a bus: its socket, the snapshot of its state, and actions from outside."""
