# SPDX-License-Identifier: MIT
"""Advice on the kind that suits a handler, from measurements while it runs."""
