# SPDX-License-Identifier: MIT
"""The handlers that take an event: registry, subscriptions of a bus, router."""
