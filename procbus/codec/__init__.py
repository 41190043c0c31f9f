# SPDX-License-Identifier: MIT
"""Objects to bytes and back, and the exact place of an object that cannot be pickled."""
