"""Sampling the demo models by caption, for the tables."""

from dataclasses import dataclass, field

import comfy.sample
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..demo import models, pictures
from ..samplers.guidance.cfg import effective_scale

BATCH = 50  # pictures sampled together


class Demo:
    """A demo model and fixed captioned scenes: every setting is sampled from the same noise and the same prompts."""

    def __init__(self, family: str, count: int, seed: int = 1000):
        self.model, self.clip, self.vae = models.load(family)
        self.scenes = pictures.random_scenes(count, torch.Generator().manual_seed(seed))
        self.captions = [pictures.caption(self.scenes, i) for i in range(count)]
        self.seed = seed

    def encode(self, captions: list[str]) -> list:
        encoded = [self.clip.encode_from_tokens(self.clip.tokenize(c), return_pooled=True) for c in captions]
        cond, pooled = (torch.cat(part) for part in zip(*encoded))
        return [[cond, {"pooled_output": pooled}]]

    @torch.inference_mode()
    def sample(self, model: ModelPatcher, cfg: float, steps: int = 25, sampler: str = "euler") -> Tensor:
        """Pictures [n, 3, H, W] in 0..1, one per caption."""
        side = pictures.SIZE // models.PACK
        done = []
        for start in range(0, len(self.captions), BATCH):
            captions = self.captions[start : start + BATCH]
            shape = (len(captions), models.LATENT_CHANNELS, side, side)
            noise = torch.randn(shape, generator=torch.Generator().manual_seed(self.seed + start))
            prompts = self.encode(captions), self.encode([""] * len(captions))
            settings = (steps, cfg, sampler, "normal", *prompts, torch.zeros(shape))
            latent = comfy.sample.sample(model, noise, *settings, seed=0, disable_pbar=True)
            done.append(self.vae.decode(latent).movedim(-1, 1).cpu())
        return torch.cat(done)


@dataclass
class EffectiveScale:
    """Collects omega_e at every step of every picture; put on a model after the nodes to be measured."""

    values: list[Tensor] = field(default_factory=list)

    def __call__(self, args: dict) -> Tensor:
        self.values.append(effective_scale(args["denoised"], args["cond_denoised"], args["uncond_denoised"]).cpu())
        return args["denoised"]

    @property
    def mean(self) -> float:
        return torch.cat(self.values).mean().item()


def measure_scale(model: ModelPatcher) -> EffectiveScale:
    measured = EffectiveScale()
    model.set_model_sampler_post_cfg_function(measured)
    return measured
