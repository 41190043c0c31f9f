# SPDX-License-Identifier: MIT
"""What the operating system and the interpreter tell."""
