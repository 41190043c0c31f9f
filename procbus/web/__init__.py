# SPDX-License-Identifier: MIT
"""The live view as a web page: a server in a separate process, on the loopback address."""
