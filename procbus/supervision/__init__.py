# SPDX-License-Identifier: MIT
"""Looks at workers, ends the ones that hang or leak, and reports their health."""
