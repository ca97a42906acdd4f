"""Sampling the demo models by caption, for the tables."""

from dataclasses import dataclass, field

import comfy.sample
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..demo import models, pictures
from ..samplers.reductions import dot

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
    """Collects omega_e over the steps and pictures of a run; put on a model after the nodes to be measured.

    The ratio of the sums over steps, not the mean of the ratios: late steps have almost no guidance direction of their
    own, and whatever is added there would count as a huge scale."""

    along: list[Tensor] = field(default_factory=list)
    square: list[Tensor] = field(default_factory=list)

    def __call__(self, args: dict) -> Tensor:
        if args["uncond"] is not None:
            uncond = args["uncond_denoised"]
            delta = args["cond_denoised"] - uncond
            self.along.append(dot(args["denoised"] - uncond, delta).sum().cpu())
            self.square.append(dot(delta, delta).sum().cpu())
        return args["denoised"]

    @property
    def mean(self) -> float:
        """NaN if there was no negative to measure against."""
        return (sum(self.along) / sum(self.square)).item() if self.along else float("nan")


def measure_scale(model: ModelPatcher) -> EffectiveScale:
    measured = EffectiveScale()
    model.set_model_sampler_post_cfg_function(measured)
    return measured


def diversity(features: Tensor, scenes: pictures.Scenes) -> float:
    """Mean distance in the judge's feature space between pictures of the same shape and colour."""
    classes = scenes.shape * len(pictures.COLOURS) + scenes.colour
    same = (classes[:, None] == classes[None, :]).triu(1)
    return torch.cdist(features, features)[same].mean().item()
