"""The configuration that PEFT saves beside the weights of an adapter, which gives the scale of its product.

It is in adapter_config.json, or under `lora_adapter_metadata` in a file of diffusers, where each name has the network's
as a prefix. It has the rank r and lora_alpha (alpha for LoHa and LoKr). A module's product is multiplied by alpha / r,
also where the factors of LoKr have no rank, or with rsLoRA (Kalajdzievski 2023, arXiv 2312.03732) by alpha / sqrt(r).
PEFT's weights themselves do not contain alpha.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from reprlib import repr as shown
from typing import Any, TypeVar

from ..strict_json import is_number, read_json

LARGEST = 1e6  # the largest alpha that is read; files have up to a few hundred, and 1e39 is infinite in float32
_NETWORKS = ("unet.", "transformer.")
_Otherwise = TypeVar("_Otherwise")


@dataclass(frozen=True)
class PeftConfig:
    """alpha and r of an adapter, with exceptions for modules by the end of their path."""

    alpha: float
    rank: float | None = None
    rank_stabilised: bool = False
    alphas: Mapping[str, float] = field(default_factory=dict)  # by the end of the module's path
    ranks: Mapping[str, float] = field(default_factory=dict)

    def share(self, module: str, rank: float | None) -> float:
        """The factor of a module's product. `rank`: that of its factors, None if they have none.

        Raises:
            ValueError: neither the factors nor the configuration have a rank.
        """
        rank = rank or _of(module, self.ranks, self.rank)
        if not rank:
            raise ValueError(f"the configuration of the adapter has alpha {self.alpha:g} and no r")
        return _of(module, self.alphas, self.alpha) / (math.sqrt(rank) if self.rank_stabilised else rank)


def read_config(text: str) -> PeftConfig | None:
    """The configuration in a JSON text; None if it has no alpha.

    Raises:
        ValueError: it cannot be read, or has a value that is not accepted.
    """
    try:
        found = read_json(text)
    except ValueError as error:
        raise ValueError(f"the configuration of the adapter cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ValueError("the configuration of the adapter is not a dict")
    for network in _NETWORKS:
        found |= {name.removeprefix(network): value for name, value in found.items() if name.startswith(network)}
    alpha, rank = found.get("lora_alpha", found.get("alpha")), found.get("r")
    if alpha is None:
        return None
    alphas, ranks = (_by_end(found, name) for name in ("alpha_pattern", "rank_pattern"))
    for name, values in (("alpha", [alpha, *alphas.values()]), ("r", [1 if rank is None else rank, *ranks.values()])):
        for value in values:
            if not is_number(value) or abs(value) > LARGEST or name == "r" and value <= 0:
                raise ValueError(
                    f"the configuration of the adapter has {name} {shown(value)}; numbers up to {LARGEST:g} are read"
                )
    return PeftConfig(float(alpha), rank, found.get("use_rslora") is True, alphas, ranks)


def _of(module: str, by_end: Mapping[str, float], otherwise: _Otherwise) -> float | _Otherwise:
    return next((n for end, n in by_end.items() if module == end or module.endswith(f".{end}")), otherwise)


def _by_end(found: dict, name: str) -> dict[str, Any]:
    patterns = found.get(name) or {}
    if not isinstance(patterns, dict):
        raise ValueError(f"the configuration of the adapter has {name} {shown(patterns)}")
    # PEFT allows regular expressions; those in use are ends of paths.
    return {pattern.lstrip("^").rstrip("$").replace("\\.", "."): value for pattern, value in patterns.items()}
