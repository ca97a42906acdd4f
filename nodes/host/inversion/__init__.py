"""Exact inversion and recorded trajectories as samplers of the host, and the states that they return.

Nodes use `sampler`, `exact_state`, `trajectory`. Below it: run/.
"""
