# SPDX-License-Identifier: MIT
"""Looks at workers, ends those that hang or leak, and tells how they are."""
