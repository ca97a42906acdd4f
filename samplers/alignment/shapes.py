"""Whether the parts of an adapter make a change of a weight's shape; from shapes alone."""

import math
from collections.abc import Iterable, Mapping

Shape = tuple[int, ...]


def rank_of(parts: Mapping[str, Shape]) -> int | None:
    """The rank of a low-rank adapter; None for other kinds."""
    down = parts.get("lora_down.weight") or parts.get("hada_w1_b")
    return down[0] if down else None


def kind_of(parts: Iterable[str]) -> str:
    """LoRA, LoHa, LoKr, OFT or GLoRA, by what its first part is called; else it is a difference."""
    kinds = (kind for part in parts for first, kind in _KINDS.items() if part.startswith(first))
    return next(kinds, "differences")


def problem(parts: Mapping[str, Shape], weight: Shape) -> str | None:
    """What is wrong with the adapter of a weight, in words that follow its name; None for nothing.

    `parts`: shapes by the names of `lora_keys`: of LoRA, LoHa (Hadamard), LoKr (Kronecker), and whole differences.
    OFT and GLoRA are looked at for missing parts only.
    """
    try:
        return _problem(parts, weight)
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
    if math.prod(parts.get("alpha", ())) != 1:
        return f"has an alpha of {math.prod(parts['alpha'])} numbers"
    made: Shape | None = None  # rows, columns
    if "LoRA" in kinds:
        down, up = parts["lora_down.weight"], parts["lora_up.weight"]
        mid = parts.get("lora_mid.weight")
        if up[1] != down[0] or mid is not None and mid[:2] != (down[0], down[0]):
            return f"has a rank of {down[0]} and of {up[1]}"
        made = up[0], math.prod(down[1:]) * (math.prod(mid[2:]) if mid else 1)
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
        _ = [parts[name] for name in ("a1.weight", "a2.weight", "b1.weight", "b2.weight")]
    elif "OFT" in kinds:
        *_, blocks, size, _ = parts["oft_blocks"]  # BOFT has a dimension more, of passes
        if blocks * size != weight[0]:
            return f"has blocks for {blocks * size} rows, where the weight has {weight[0]}"
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
    if core is not None:  # of a convolution: [rank, rank, height, width], a [rank, out], b [rank, in]
        return (a[1], b[1] * math.prod(core[2:])) if core[:2] == (a[0], b[0]) else None
    return (a[0], math.prod(b[1:])) if a[1] == b[0] else None


def _kron(parts: Mapping[str, Shape], i: str) -> Shape | None:
    whole = parts.get(f"lokr_w{i}")
    if whole is not None:
        return whole[0], math.prod(whole[1:])
    a, b = parts[f"lokr_w{i}_a"], parts[f"lokr_w{i}_b"]
    core = parts.get("lokr_t2") if i == "2" else None
    if core is not None:
        return (a[1], b[1] * math.prod(core[2:])) if core[:2] == (a[0], b[0]) else None
    return (a[0], math.prod(b[1:])) if a[1] == b[0] else None
