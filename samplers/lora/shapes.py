"""Checks from shapes alone that the parts of an adapter make a change of the weight's shape."""

import math
from collections.abc import Iterable, Mapping

Shape = tuple[int, ...]


def rank_of(parts: Mapping[str, Shape]) -> int | None:
    """The rank of a low-rank adapter; None for other kinds. `parts`: shapes by the names in `keys.py`."""
    factors = (parts.get(name) for name in ("lora_down.weight", "hada_w1_b", "lokr_w2_b", "lokr_w1_b"))
    return next((factor[0] for factor in factors if factor), None)


def kind_of(parts: Iterable[str]) -> str:
    """The kind of an adapter by the names of its parts: LoRA, LoHa, LoKr, OFT or GLoRA, else "differences"."""
    kinds = (kind for part in parts for first, kind in _KINDS.items() if part.startswith(first))
    return next(kinds, "differences")


def problem(parts: Mapping[str, Shape], weight: Shape, bias: Shape | None = None) -> str | None:
    """What is wrong with the adapter of a weight, in words that follow its name in a sentence; None if nothing is.

    `parts`: shapes by the names in `keys.py`. `weight`, `bias`: the model's shapes; None if there is no bias.
    """
    try:
        return _problem(parts, weight) or _problem_of_bias(parts, bias)
    except KeyError as error:
        return f"has no {error.args[0]}"
    except (IndexError, ValueError):
        return "has parts with too few dimensions"


def _problem(parts: Mapping[str, Shape], weight: Shape) -> str | None:
    kinds = {name for first, name in _KINDS.items() if any(part.startswith(first) for part in parts)}
    if parts.keys() & {"diff", "set_weight", "w_norm"}:
        kinds.add("a whole difference")
    if len(kinds) > 1:
        return f"has parts of {' and '.join(sorted(kinds))}"
    if "rescale" in parts and "OFT" not in kinds:
        return "has a rescale without a rotation"
    if not kinds and not parts.keys() & {*_OF_BIAS, "dora_scale"}:
        return f"has nothing but {' and '.join(parts)}"
    if math.prod(parts.get("alpha", ())) != 1:
        return f"has an alpha of {math.prod(parts['alpha'])} numbers"
    made: Shape | None = None  # rows, columns
    if "LoRA" in kinds:
        down, up = parts["lora_down.weight"], parts["lora_up.weight"]
        mid = parts.get("lora_mid.weight")
        if up[1] != down[0] or mid is not None and mid[:2] != (down[0], down[0]):
            return f"has a rank of {down[0]} and of {up[1]}"
        made = up[0], math.prod(down[1:]) * (math.prod(mid[2:]) if mid else 1)
        if "reshape_weight" in parts:  # a wider layer, where only the product uses the new inputs
            wider = up[0], *down[1:]
            if len(wider) != len(weight) or any(new < old for new, old in zip(wider, weight)):
                return f"is for a weight of {list(wider)}, into which {list(weight)} does not fit"
            weight = wider
    elif "LoHa" in kinds:
        halves = [_hada(parts, i) for i in "12"]
        if None in halves or halves[0] != halves[1]:
            return "has factors of different shapes"
        made = halves[0]
    elif "LoKr" in kinds:
        one, two = (_kron(parts, i) for i in "12")
        if one is None or two is None:
            return "has factors of different ranks"
        made = one[0] * two[0], one[1] * two[1]
    elif "GLoRA" in kinds:
        made = _glora(parts, weight)
        if made is None:
            return "has factors of different shapes"
    elif "OFT" in kinds:
        *_, blocks, size, width = parts["oft_blocks"]  # BOFT has one more dimension, over its passes
        if blocks * size != weight[0] or size != width:
            return f"has {blocks} blocks of {size} x {width}, where the weight has {weight[0]} rows"
        if math.prod(parts.get("rescale", weight[:1])) != weight[0]:
            return f"has a rescale of {list(parts['rescale'])}, where the weight has {weight[0]} rows"
    wanted = weight[0], math.prod(weight[1:])
    if made is not None and made != wanted:
        return f"is for a weight of {made[0]} x {made[1]}, where the model has {wanted[0]} x {wanted[1]}"
    for name in ("diff", "set_weight", "w_norm"):
        if name in parts and parts[name] != weight:
            return f"changes a weight of {list(parts[name])}, where the model has {list(weight)}"
    scale = parts.get("dora_scale")
    if scale is not None and not kinds - {"a whole difference"}:
        return "has a magnitude without a product"
    if scale is not None and not (
        math.prod(scale) == weight[0] or len(weight) > 1 and scale[:2] == (1, weight[1]) and math.prod(scale[2:]) == 1
    ):
        return f"has a magnitude of {list(scale)}, where the weight has {list(weight)}"
    return None


def _problem_of_bias(parts: Mapping[str, Shape], bias: Shape | None) -> str | None:
    for name in _OF_BIAS:
        if name in parts and parts[name] != bias:
            has = "none" if bias is None else list(bias)
            return f"changes a bias of {list(parts[name])}, where the model has {has}"
    return None


_OF_BIAS = ("diff_b", "b_norm", "lora_up.bias")
_KINDS = {
    "lora_": "LoRA",
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "oft_": "OFT",
    "a1.": "GLoRA",
    "a2.": "GLoRA",
    "b1.": "GLoRA",
    "b2.": "GLoRA",
}


def _hada(parts: Mapping[str, Shape], i: str) -> Shape | None:
    a, b = parts[f"hada_w{i}_a"], parts[f"hada_w{i}_b"]
    core = parts.get(f"hada_t{i}")
    if core is not None:  # a convolution: [rank, rank, height, width], with a [rank, out], b [rank, in]
        return (a[1], b[1] * math.prod(core[2:])) if core[:2] == (a[0], b[0]) else None
    return (a[0], math.prod(b[1:])) if a[1] == b[0] else None


def _glora(parts: Mapping[str, Shape], weight: Shape) -> Shape | None:
    """The (rows, columns) of GLoRA: W + W a1 a2 + b1 b2, or in its first version W + W a2 a1 + b2 b1; None if they do
    not fit."""
    a1, a2, b1, b2 = ((s[0], math.prod(s[1:])) for s in (parts[f"{name}.weight"] for name in ("a1", "a2", "b1", "b2")))
    new = a1[1] == a2[0] == b1[1] == b2[0] and a1[0] == a2[1] == weight[1]
    first = a2[1] == a1[0] == b2[1] == b1[0] and a2[0] == a1[1] == math.prod(weight[1:])
    return (b1[0], b2[1]) if new else (b2[0], b1[1]) if first else None


def _kron(parts: Mapping[str, Shape], i: str) -> Shape | None:
    whole = parts.get(f"lokr_w{i}")
    if whole is not None:
        return whole[0], math.prod(whole[1:])
    a, b = parts[f"lokr_w{i}_a"], parts[f"lokr_w{i}_b"]
    core = parts.get("lokr_t2") if i == "2" else None
    if core is not None:
        return (a[1], b[1] * math.prod(core[2:])) if core[:2] == (a[0], b[0]) else None
    return (a[0], math.prod(b[1:])) if a[1] == b[0] else None
