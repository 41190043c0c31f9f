# SPDX-License-Identifier: MIT
"""Facts from the operating system and the interpreter."""
