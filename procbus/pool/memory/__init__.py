# SPDX-License-Identifier: MIT
"""Large events and results in shared memory."""
