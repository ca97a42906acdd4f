"""Sampling the demo models by caption, for the tables."""

import copy
from dataclasses import dataclass, field

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..demo import models, pictures
from ..samplers.guidance.cfg import along_guidance

BATCH = 50  # pictures sampled together


class Demo:
    """A demo model and fixed captioned scenes: every setting is sampled from the same noise and the same prompts."""

    def __init__(self, family: str, count: int, seed: int = 1000):
        self.model, self.clip, self.vae = models.load(family)
        self.scenes = pictures.random_scenes(count, torch.Generator().manual_seed(seed))
        self.captions = [pictures.caption(self.scenes, i) for i in range(count)]
        self.seed = seed
        self.negative = ""

    def asking(self, captions: list[str], seed: int) -> "Demo":
        """The same model for other prompts, from other noise."""
        other = copy.copy(self)
        other.captions, other.seed = captions, seed
        return other

    def encode(self, captions: list[str]) -> list:
        encoded = [self.clip.encode_from_tokens(self.clip.tokenize(c), return_pooled=True) for c in captions]
        cond, pooled = (torch.cat(part) for part in zip(*encoded))
        return [[cond, {"pooled_output": pooled}]]

    @torch.inference_mode()
    def sample(
        self,
        model: ModelPatcher,
        cfg: float,
        steps: int = 25,
        sampler: str | comfy.samplers.Sampler = "euler",
        batch: int = BATCH,
    ) -> Tensor:
        """Pictures [n, 3, H, W] in 0..1, one per caption; each from the same noise whatever the batch."""
        if isinstance(sampler, str):
            sampler = comfy.samplers.sampler_object(sampler)
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)
        done = []
        for start in range(0, len(self.captions), batch):
            guider = self.guider(model, cfg, self.captions[start : start + batch])
            noise = self.noise()[start : start + batch]
            latent = guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=0)
            done.append(self.decode(latent))
        return torch.cat(done)

    def guider(self, model: ModelPatcher, cfg: float, captions: list[str]) -> comfy.samplers.CFGGuider:
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(self.encode(captions), self.encode([self.negative] * len(captions)))
        guider.set_cfg(cfg)
        return guider

    def noise(self) -> Tensor:
        """For all captions."""
        side = pictures.SIZE // models.PACK
        shape = (BATCH, models.LATENT_CHANNELS, side, side)
        starts = range(0, len(self.captions), BATCH)
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(self.seed + start)) for start in starts]
        return torch.cat(noise)[: len(self.captions)]

    def decode(self, latent: Tensor) -> Tensor:
        return self.vae.decode(latent).movedim(-1, 1).cpu()


@dataclass
class EffectiveScale:
    """Collects omega_e over the steps and pictures of a run; put on a model after the nodes to be measured.

    The ratio of the sums over steps, not the mean of the ratios: late steps have almost no guidance direction of their
    own, and whatever is added there would count as a huge scale."""

    along: list[Tensor] = field(default_factory=list)
    square: list[Tensor] = field(default_factory=list)

    def __call__(self, args: dict) -> Tensor:
        if args["uncond"] is not None:
            found = along_guidance(args["denoised"], args["cond_denoised"], args["uncond_denoised"])
            for kept, values in zip((self.along, self.square), found):
                kept.append(values.sum().cpu())
        return args["denoised"]

    @property
    def mean(self) -> float:
        """NaN if there was no negative to measure against."""
        return (sum(self.along) / sum(self.square)).item() if self.along else float("nan")


def measure_scale(model: ModelPatcher) -> EffectiveScale:
    measured = EffectiveScale()
    model.set_model_sampler_post_cfg_function(measured)
    return measured


@dataclass
class Evaluations:
    """Counts the network evaluations of the runs of a model, a prediction for one picture being one."""

    count: int = 0

    def __call__(self, executor, x, *args, **kwargs):
        self.count += len(x)
        return executor(x, *args, **kwargs)


def count_evaluations(model: ModelPatcher) -> Evaluations:
    counted = Evaluations()
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "guidekit_bench", counted)
    return counted


def drawn_pictures(seed: int = 2) -> Tensor:
    """Pictures of the world that the models were trained on, to measure the distance to."""
    return pictures.draw(pictures.random_scenes(2000, torch.Generator().manual_seed(seed)))


def diversity(features: Tensor, scenes: pictures.Scenes) -> float:
    """Mean distance in the judge's feature space between pictures of the same shape and colour."""
    classes = scenes.shape * len(pictures.COLOURS) + scenes.colour
    same = (classes[:, None] == classes[None, :]).triu(1)
    return torch.cdist(features, features)[same].mean().item()
