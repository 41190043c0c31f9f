# SPDX-License-Identifier: MIT
"""The live view as a web page: a server in a process of its own, on the loopback address."""
