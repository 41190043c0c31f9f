"""What procbus reaches, beside its limits and its peers: ``python -m bench``."""
