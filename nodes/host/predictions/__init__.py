"""The inputs and results of CFG: additional predictions, a replaced negative, corrections after CFG, scales.

Nodes attach with `add_branch`, `add_correction`, `watch_negative`, `set_scale`, `limit_scale`, `add_weak_branch`.
Below it: run/, network/.
"""
