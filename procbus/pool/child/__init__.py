# SPDX-License-Identifier: MIT
"""Code that runs in a worker process."""
