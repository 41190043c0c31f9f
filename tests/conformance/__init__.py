"""The behaviour that every pool behind the interface shares."""
