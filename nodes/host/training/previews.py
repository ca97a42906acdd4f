"""Images of fixed seeds by the model as it is being trained, roughly decoded: no VAE is loaded for them, which might
take the model's place.

Relies on: `latent_rgb_factors` of latent formats and the previewer of them (latent_preview.py); samplers called with a
guider, whose `conds` and `cfg` are of the moment (comfy/samplers.py:1095, 1217).
"""

from collections.abc import Sequence

import comfy.samplers
import torch
from latent_preview import Latent2RGBPreviewer
from PIL import Image

from ..votes.vote_set import VoteRow
from .session import Session
from .step import noise_of

_STEPS, _SEED = 8, 8_000_000


@torch.no_grad()
def previews(session: Session, rows: Sequence[VoteRow]) -> list[Image.Image]:
    """One for each, with its prompts and at its cfg; none for models whose latents say nothing of colours."""
    form = session.base.latent_format
    if getattr(form, "latent_rgb_factors", None) is None:
        return []
    reshape = getattr(form, "latent_rgb_factors_reshape", None)
    previewer = Latent2RGBPreviewer(form.latent_rgb_factors, form.latent_rgb_factors_bias, reshape)
    return [previewer.decode_latent_to_preview(_sample(session, row, i)) for i, row in enumerate(rows)]


def _sample(session: Session, row: VoteRow, i: int) -> torch.Tensor:
    shape = tuple(row.latent.shape)
    noise = noise_of(_SEED + i, shape).to(session.device)
    sigmas = comfy.samplers.calculate_sigmas(session.sampling, "simple", _STEPS).to(session.device)
    guider, before = session.guider, (session.guider.conds, session.guider.cfg)
    guider.conds, guider.cfg = {"positive": session.prompt(row.positive, shape)}, 1.0
    if row.negative is not None and row.cfg is not None:
        guider.conds["negative"], guider.cfg = session.prompt(row.negative, shape), row.cfg
    try:
        sampler, blank = comfy.samplers.sampler_object("euler"), torch.zeros_like(noise)
        extra = {"model_options": session.options, "seed": 0}
        return sampler.sample(guider, sigmas, extra, None, noise, blank, None, True)
    finally:
        guider.conds, guider.cfg = before


def of_different_prompts(rows: Sequence[VoteRow], number: int) -> list[VoteRow]:
    """The first of each prompt."""
    return list({row.prompt: row for row in reversed(rows)}.values())[::-1][:number]
