"""Exact inversion: from a picture to noise and back without an error beyond rounding."""
