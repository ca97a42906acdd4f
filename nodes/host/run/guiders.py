"""How a guider combines its predictions, and which scales it has.

Relies on: `conds` of a running guider by role (comfy/samplers.py:1299), and core's guiders: CFGGuider and DualModel
with `cfg`; Basic with only a positive; DualCFG (a "middle" prompt) with `cfg1` and `cfg2`, which gives the positive
alone at 1 and 1; PerpNeg (an "empty_negative_prompt") with `cfg` and `neg_scale`, which does so at 1 and 0.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


def has_one_scale(guider) -> bool:
    """Whether the guided prediction is D_u + cfg (D_c - D_u). Without a negative the host would use zeros for D_u; with
    a third prompt `cfg` is not the only scale."""
    return _has_negative(guider) and "middle" not in guider.conds and guides_by_cfg(guider)


def guides_by_cfg(guider) -> bool:
    """Whether the first `denoised` of post-CFG functions is D_u + scale (D_c - D_u) of the predictions in `args`."""
    return not _is_perp_neg(guider)


def why_not_one_scale(guider) -> str:
    """The reason why a guider does not have one scale, as the end of a sentence."""
    name = type(guider).__name__.removeprefix("Guider_")
    if not _has_negative(guider):
        return "the guider has no negative prompt (BasicGuider)."
    return f"the guider ({name}) combines three predictions; this node needs a positive and a negative (CFGGuider)."


@contextmanager
def limited_scale(guider, change: Callable[[float], float]) -> Iterator[None]:
    """Within the block, each scale s of the guider is `change(s)`, which is nearer to 1; where all scales are 1, the
    guider predicts the positive alone."""
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
