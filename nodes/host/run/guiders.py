"""What a guider does with its predictions, and the scales that it has.

Relies on: `conds` of a running guider by role (comfy/samplers.py:1299), and the guiders of core: CFGGuider and
DualModel with `cfg`; Basic with a positive alone; DualCFG (a "middle" prompt) with `cfg1` and `cfg2`, at 1 and 1 the
positive alone; PerpNeg (an "empty_negative_prompt") with `cfg` and `neg_scale`, at 1 and 0 the positive alone.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


def has_one_scale(guider) -> bool:
    """Whether the guided prediction is D_u + cfg (D_c - D_u). Without a negative the host would guide by zeros; with a
    third prompt `cfg` is not all it guides by."""
    return _has_negative(guider) and "middle" not in guider.conds and guides_by_cfg(guider)


def guides_by_cfg(guider) -> bool:
    """Whether what post-CFG functions are given first is D_u + scale (D_c - D_u) of the two that they are shown."""
    return not _is_perp_neg(guider)


def why_not_one_scale(guider) -> str:
    """For a guider that has not, as the end of a sentence."""
    name = type(guider).__name__.removeprefix("Guider_")
    if not _has_negative(guider):
        return "the guider has no negative prompt (BasicGuider)."
    return f"the guider ({name}) combines three predictions; this node needs a positive and a negative (CFGGuider)."


@contextmanager
def limited_scale(guider, change: Callable[[float], float]) -> Iterator[None]:
    """The guider with each scale s at `change(s)`, which is nearer to 1; where all of them come to 1, it predicts the
    positive alone."""
    saved = {name: getattr(guider, name) for name in _scales(guider)}
    limited = {name: change(scale) for name, scale in saved.items()}
    if _is_perp_neg(guider) and limited != saved and limited["cfg"] == 1:
        saved["neg_scale"], limited["neg_scale"] = guider.neg_scale, 0.0
    try:
        _set(guider, limited)
        yield
    finally:
        _set(guider, saved)


def _set(guider, scales: dict[str, float]) -> None:
    for name, scale in scales.items():
        setattr(guider, name, scale)


def _scales(guider) -> tuple[str, ...]:
    if not _has_negative(guider):
        return ()
    return ("cfg1", "cfg2") if "middle" in guider.conds and hasattr(guider, "cfg2") else ("cfg",)


def _has_negative(guider) -> bool:
    return bool(guider.conds.get("negative"))


def _is_perp_neg(guider) -> bool:
    return "empty_negative_prompt" in guider.conds
