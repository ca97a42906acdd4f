"""Guidance: how several predictions at one (x, sigma) become one."""
