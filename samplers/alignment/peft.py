"""What PEFT writes beside the weights of an adapter: which share of B A is added.

The configuration (adapter_config.json, or the same under `lora_adapter_metadata` in a file of diffusers, where each
name begins with that of the network) has the rank r and lora_alpha; a module's B A is multiplied by alpha / r, with
rsLoRA (Kalajdzievski 2023, arXiv 2312.03732) by alpha / sqrt(r). Without it nothing in the file says alpha.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from reprlib import repr as shown
from typing import Any

from ..strict_json import is_number, read_json

LARGEST = 1e6  # alpha; files have up to a few hundred, and 1e39 is infinite in float32
_NETWORKS = ("unet.", "transformer.")


@dataclass(frozen=True)
class PeftConfig:
    alpha: float
    rank_stabilised: bool = False
    patterns: Mapping[str, float] = field(default_factory=dict)  # alpha of modules by the end of their path

    def alpha_of(self, module: str, rank: int) -> float:
        """The alpha for which alpha / rank is this module's share."""
        alpha = next((a for end, a in self.patterns.items() if module == end or module.endswith(f".{end}")), self.alpha)
        return alpha * math.sqrt(rank) if self.rank_stabilised else alpha


def read_config(text: str) -> PeftConfig | None:
    """None where it says nothing of alpha.

    Raises:
        ValueError: a sentence about what is wrong with it.
    """
    try:
        found = read_json(text)
    except ValueError as error:
        raise ValueError(f"the configuration of the adapter cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ValueError("the configuration of the adapter is no dict")
    for network in _NETWORKS:
        found |= {name.removeprefix(network): value for name, value in found.items() if name.startswith(network)}
    alpha, patterns = found.get("lora_alpha"), found.get("alpha_pattern") or {}
    if alpha is None:
        return None
    if not isinstance(patterns, dict) or not all(map(_is_alpha, (alpha, *patterns.values()))):
        raise ValueError(
            f"the configuration of the adapter has lora_alpha {shown(alpha)} and alpha_pattern {shown(patterns)}; "
            f"numbers up to {LARGEST:g} are read"
        )
    # They are regular expressions; all that are in use are ends of paths.
    ends = {pattern.lstrip("^").rstrip("$").replace("\\.", "."): float(a) for pattern, a in patterns.items()}
    return PeftConfig(float(alpha), found.get("use_rslora") is True, ends)


def _is_alpha(value: Any) -> bool:
    return is_number(value) and abs(value) <= LARGEST
