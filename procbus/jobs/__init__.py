# SPDX-License-Identifier: MIT
"""Jobs: all that a block of your script sets going, as one thing to wait for; and expectations."""
