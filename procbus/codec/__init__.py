# SPDX-License-Identifier: MIT
"""Objects to bytes and back."""
