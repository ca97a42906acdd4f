"""Latents and prompts of votes: the stored ones, or else encoded from the image and the text.

Relies on: `encode` of a VAE, `tokenize` and `encode_from_tokens_scheduled` of a CLIP (comfy/sd.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .vote import Vote

if TYPE_CHECKING:
    from .store import Store


@dataclass(frozen=True, eq=False)
class Encoders:
    """Encode what was not stored with a vote: imported votes have an image and a text only. `vae` and `clip` may be
    None; then the result for such a vote is None."""

    vae: Any
    clip: Any

    def latent(self, store: Store, vote: Vote) -> Tensor | None:
        if vote.latent is not None:
            return store.latent(vote)
        if self.vae is None:
            return None
        with Image.open(store.image_path(vote.id)) as image:
            pixels = torch.from_numpy(np.asarray(image.convert("RGB")).astype(np.float32) / 255)
        return self.vae.encode(pixels[None]).cpu()

    def prompt(self, store: Store, name: str | None, text: str) -> list | None:
        if name is not None:
            return store.conditioning(name)
        return None if self.clip is None else self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))
