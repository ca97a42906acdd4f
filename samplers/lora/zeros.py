"""Recognises adapters that were never trained: they change no weight."""

from collections.abc import Mapping

from torch import Tensor

_ADDED = ("diff", "diff_b", "w_norm", "b_norm", "lora_up.bias")


def changes_nothing(parts: Mapping[str, Tensor]) -> bool:
    """Whether an adapter changes no weight. `parts`: all parts of a module, by the names in `keys.py`."""

    def zero(name: str) -> bool:
        return name in parts and not parts[name].float().any()

    if "dora_scale" in parts or "set_weight" in parts or any(name in parts and not zero(name) for name in _ADDED):
        return False
    if "oft_blocks" in parts:  # a rotation; symmetric blocks give the identity
        blocks = parts["oft_blocks"].float()
        rescaled = "rescale" in parts and bool((parts["rescale"].float() != 1).any())
        return not rescaled and bool((blocks == blocks.transpose(-1, -2)).all())
    if "a1.weight" in parts:  # W A + B
        return all(zero(f"{name}1.weight") or zero(f"{name}2.weight") for name in "ab")
    factors = [name for name in parts if name not in _ADDED and name != "reshape_weight"]
    return not factors or any(map(zero, factors))
