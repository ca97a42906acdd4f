"""Which layers of a network get a product.

Relies on: names of the host's networks. Attention layers are in modules whose name has "attn" or "attention" in it;
in blocks of Flux's kind that hold one stream, what goes into attention and what comes out of it are `linear1` and
`linear2`. Cross-attention is `attn2` in UNets and `cross_attn` in Wan.
"""

from typing import Protocol, cast

from comfy.model_patcher import ModelPatcher

from ..models.row_lora import is_linear

LAYERS = ("attention", "cross-attention", "all linear")
_FUSED = ("linear1", "linear2")
_ACROSS = ("attn2", "cross_attn")


class Linear(Protocol):
    """The host's quantised linear layers are not nn.Linear."""

    in_features: int
    out_features: int


def layers_of(model: ModelPatcher, kind: str) -> dict[str, Linear]:
    """By their paths in the host's model, in order.

    Raises:
        ValueError: a network that has none of the kind.
    """
    linear = {
        f"diffusion_model.{path}": cast(Linear, module)
        for path, module in model.model.diffusion_model.named_modules()
        if is_linear(module) and getattr(module, "weight", None) is not None
    }
    found = {path: module for path, module in linear.items() if _IS[kind](path.split("."))}
    if not found:
        kinds = [other for other in LAYERS if any(_IS[other](path.split(".")) for path in linear)]
        raise ValueError(
            f"{type(model.model).__name__} has no layers of the kind {kind!r}; its {len(linear)} linear layers are: "
            f"{', '.join(kinds) or 'none'}."
        )
    return found


def _is_attention(parts: list[str]) -> bool:
    fused = "single_blocks" in parts and parts[-1] in _FUSED
    return fused or any("attn" in part or "attention" in part for part in parts)


def _is_across(parts: list[str]) -> bool:
    return any(part in _ACROSS for part in parts)


def _is_linear(parts: list[str]) -> bool:
    return True


_IS = dict(zip(LAYERS, (_is_attention, _is_across, _is_linear)))
