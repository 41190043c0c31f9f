# SPDX-License-Identifier: MIT
"""The lanes: the queue and the workers of each kind of handler."""
