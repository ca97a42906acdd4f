"""How much better a tuned model predicts an image than its reference does: the implicit reward of Diffusion-DPO
(Wallace et al., CVPR 2024, arXiv 2311.12908, section 5), without its factor beta.

A mean over fixed noise levels, spread evenly, and fixed noise, so that images are compared under the same conditions.
"""

from collections.abc import Callable, Sequence

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....samplers.preference.errors import mean_square
from ....samplers.preference.replay import Part
from ....samplers.preference.window import Draw
from ..votes.vote_set import VoteRow
from .session import Session, in_session
from .step import Images, Tuning

LEVELS = 8
_SEED = 7_000_000


@torch.no_grad()
def errors(
    session: Session, rows: Sequence[VoteRow], predict: Callable[[Part], Tensor], batch: int, levels: int = LEVELS
) -> Tensor:
    """Mean errors of outputs for images, [n]."""
    images, found = Images(rows, None, [1.0] * len(rows), batch), torch.zeros(len(rows), dtype=torch.float64)
    for level in range(levels):
        window = [Draw(row, (level + 0.5) / levels, _SEED + level, False) for row in range(len(rows))]
        for places in images.groups(session, window):
            part = images.part(Tuning(session), window, places)
            found[part.places] += mean_square(predict(part), part.target).cpu().double() / levels
    return found


@torch.inference_mode()
def scores(
    reference: ModelPatcher, tuned: ModelPatcher, rows: Sequence[VoteRow], batch: int, levels: int = LEVELS
) -> Tensor:
    """Of images under two MODELs, [n]: above 0 where the tuned one predicts an image better."""

    def of(model: ModelPatcher) -> Tensor:
        shape = (batch, *rows[0].latent.shape[1:])
        return in_session(model, rows[0].positive, shape, lambda s: errors(s, rows, Tuning(s).tuned, batch, levels))

    return of(reference) - of(tuned)


def accuracy(gains: Tensor, liked: Tensor) -> float:
    """Share of the pairs of a liked and a disliked image whose gains are in the right order, ties counting half; NaN
    without a pair."""
    if not liked.any() or liked.all():
        return float("nan")
    difference = gains[liked][:, None] - gains[~liked][None]
    return ((difference > 0).double() + 0.5 * (difference == 0)).mean().item()
