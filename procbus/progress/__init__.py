# SPDX-License-Identifier: MIT
"""Shows how far a stream, a map, a drain or a whole bus is, while it goes on."""
