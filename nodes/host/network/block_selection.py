"""Blocks as users name them: "middle", "7-9", "double 7, single 3-5", "all"; empty for the default of the family."""

import re

from comfy.model_patcher import ModelPatcher

from ..run.messages import cut, quoted
from .families import Block, family_of, self_attention_blocks

TOOLTIP = (
    "Empty: the usual blocks of the model's family. Else numbers, lists and ranges, such as 7-9 or 1, 3: counted over "
    "all blocks in the order in which they run, from 0; or by kind, such as double 7-9, single 3 or output 3-5; or "
    "middle; or all."
)
_NO_BLOCK = 10**6  # more than any model has; larger numbers are read as this one
_PART = re.compile(r"(?:(?P<kind>[a-z]+)\s*)?(?:(?P<first>\d+)(?:\s*-\s*(?P<last>\d+))?)?")


def choose_blocks(model: ModelPatcher, text: str, default: list[Block]) -> list[Block]:
    """The blocks with self-attention that `text` names, in the order in which they run; `default` if `text` is empty.

    Raises:
        ValueError: a model of no known family, a name that cannot be read, or a block that the model does not have.
    """
    known = self_attention_blocks(model)
    if not text.strip():
        return default
    chosen = {block for part in text.lower().split(",") for block in _part(part.strip(), known, text)}
    return [block for block in known if block in chosen]


def _part(part: str, known: list[Block], text: str) -> list[Block]:
    if part == "all":
        return known
    if part == "middle":
        return [block for block in known if block.kind == "middle"] or [known[len(known) // 2]]
    match = _PART.fullmatch(part)
    if not part or match is None:
        raise ValueError(f"The blocks {quoted(text)} cannot be read at {quoted(part)}. {_accepted(known)}")
    kind, first, last = match["kind"], match["first"], match["last"] or match["first"]
    of_kind = {block.number: block for block in known if block.kind == kind} if kind else dict(enumerate(known))
    numbers = _numbers(first, last) if first is not None else sorted(of_kind)
    # Stops at the first missing number, so that a huge range costs nothing.
    missing = next((n for n in numbers if n not in of_kind), None)
    if missing is not None or not numbers:
        number = "" if missing is None else str(missing) if missing < _NO_BLOCK else cut(first, 20)
        what = f"{kind} {number}" if kind and number else number or quoted(part)
        raise ValueError(f"The blocks {quoted(text)} name {what}, which this model does not have. {_accepted(known)}")
    return [of_kind[n] for n in numbers]


def _numbers(first: str, last: str) -> range:
    """The range from `first` to `last`. Python does not parse thousands of digits, so long numbers become _NO_BLOCK."""
    short = len(str(_NO_BLOCK))
    start, end = (int(digits) if len(digits.lstrip("0")) < short else _NO_BLOCK for digits in (first, last))
    return range(start, end + 1)


def _accepted(known: list[Block]) -> str:
    kinds = {kind: [b.number for b in known if b.kind == kind] for kind in dict.fromkeys(b.kind for b in known)}
    listed = "; ".join(f"{kind} {', '.join(map(str, numbers))}" for kind, numbers in kinds.items())
    return f"It has {listed}; or, counted in the order in which they run, 0 to {len(known) - 1}; or middle; or all."


def usually_perturbed(model: ModelPatcher) -> list[Block]:
    """The default block whose self-attention a method perturbs: the middle block of a UNet (PAG and SEG papers), else
    the second block, as PAG is used on SD3, PixArt-Sigma and HunyuanDiT in diffusers.

    Raises:
        ValueError: a model of no known family, or a UNet without attention in its middle block.
    """
    known = self_attention_blocks(model)
    middle = [block for block in known if block.kind == "middle"]
    if family_of(model).name == "UNet" and not middle:
        raise ValueError("This UNet has no attention in its middle block. Name other blocks. " + _accepted(known))
    return middle or known[1:2] or known


def usually_merged(model: ModelPatcher) -> list[Block]:
    """The default blocks of NegToMe: the output blocks of a UNet, all blocks of a transformer."""
    known = self_attention_blocks(model)
    return [block for block in known if block.kind == "output"] or known


def usually_skipped(model: ModelPatcher) -> list[Block]:
    """The default blocks that a method skips: the middle block of a UNet; 7 to 9 of a transformer (SD3.5 medium, and
    the default of ComfyUI's own nodes), or those at the same relative depth if it has fewer than 10 blocks."""
    known = self_attention_blocks(model)
    if family_of(model).name == "UNet":
        return usually_perturbed(model)
    count = len(known)
    first, last = (7, 9) if count >= 10 else (max(1, round(count * 7 / 24)), max(1, round(count * 9 / 24)))
    return known[first : last + 1] or known[-1:]
