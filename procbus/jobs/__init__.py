# SPDX-License-Identifier: MIT
"""Jobs: all that a block of your script publishes, as one thing to wait for. Also schedules.

`expected` waits for one event.
"""
