# SPDX-License-Identifier: MIT
"""The cpu lane on Dask: procbus's own worker processes, under the workers of a Dask cluster."""
