# SPDX-License-Identifier: MIT
"""Four accidents, each on a bus, and on a pool of processes where that says something."""
