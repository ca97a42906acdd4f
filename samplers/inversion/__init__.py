"""Exact inversion: from an image to noise and back, with no error except rounding."""
