# SPDX-License-Identifier: MIT
"""How far a stream, a map, a drain or a whole bus is, shown while it goes on."""
