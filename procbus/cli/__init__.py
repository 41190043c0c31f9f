# SPDX-License-Identifier: MIT
"""The command line: `procbus` and its commands."""
