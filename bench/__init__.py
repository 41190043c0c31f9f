"""The figures of procbus, beside its limits and its peers: ``python -m bench``."""
