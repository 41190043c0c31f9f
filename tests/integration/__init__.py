"""Tests with real processes, kills and signals."""
