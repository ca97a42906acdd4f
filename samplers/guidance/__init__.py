"""Guidance: rules that combine several predictions at one (x, sigma)."""
