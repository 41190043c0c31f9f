# SPDX-License-Identifier: MIT
"""Which kind suits a handler: measured while it runs."""
