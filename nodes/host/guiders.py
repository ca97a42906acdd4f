"""Which guiders have one scale between a positive and a negative.

Relies on: `conds` of a running guider by role (comfy/samplers.py:1299); the guiders of core: CFGGuider and PerpNeg with
`cfg`, DualCFG with two scales and a "middle", Basic with a positive alone.
"""


def has_one_scale(guider) -> bool:
    """Without a negative the host would guide by zeros; with a third prompt `cfg` is not what it guides by."""
    return bool(guider.conds.get("negative")) and "middle" not in guider.conds
