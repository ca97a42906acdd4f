"""Exact inversion and recorded trajectories as samplers of the host, and what they leave behind.

Nodes use `sampler`, `exact_state`, `trajectory`. Below it: run/.
"""
