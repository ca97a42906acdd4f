"""Weights that were tuned to preferences."""
