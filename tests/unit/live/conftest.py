# SPDX-License-Identifier: MIT
"""A directory for the sockets of each test alone."""

from tests.unit.live_sockets import sockets as sockets
