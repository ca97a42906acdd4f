"""What PEFT writes beside the weights of an adapter: which share of B A is added.

The configuration (adapter_config.json, or the same under `lora_adapter_metadata` in a file of diffusers, where each
name begins with that of the network) has the rank r and lora_alpha; a module's B A is multiplied by alpha / r, with
rsLoRA (Kalajdzievski 2023, arXiv 2312.03732) by alpha / sqrt(r). Without it nothing in the file says alpha.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the configuration of the adapter is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError("the configuration of the adapter is no dict")
    for network in _NETWORKS:
        found |= {name.removeprefix(network): value for name, value in found.items() if name.startswith(network)}
    alpha, patterns = found.get("lora_alpha"), found.get("alpha_pattern") or {}
    if alpha is None:
        return None
    if not isinstance(patterns, dict) or not all(_is_number(value) for value in (alpha, *patterns.values())):
        raise ValueError(f"the configuration of the adapter has lora_alpha {alpha!r} and alpha_pattern {patterns!r}")
    # They are regular expressions; all that are in use are ends of paths.
    ends = {pattern.lstrip("^").rstrip("$").replace("\\.", "."): float(a) for pattern, a in patterns.items()}
    return PeftConfig(float(alpha), found.get("use_rslora") is True, ends)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
