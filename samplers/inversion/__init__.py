"""Exact inversion: from an image to noise and back without an error beyond rounding."""
