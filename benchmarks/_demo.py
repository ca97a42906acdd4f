"""Sampling the demo models by caption, for the tables."""

import copy
from dataclasses import dataclass, field

import comfy.model_management
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..demo.training.gather import draw_on
from ..demo.world import models
from ..demo.world.captions import plain_caption
from ..demo.world.judge import Found, find, load_judge
from ..demo.world.render import SIZE
from ..demo.world.scenes import Scenes, generator_of, random_scenes
from ..samplers.guidance.cfg import along_guidance

BATCH = 50  # images of one noise generator
SOLIDS = 3  # in a caption
EACH = 2  # images of a caption: from their distance, the diversity


class Demo:
    """A demo model and fixed captioned scenes of solids that are never together in training: every setting is sampled
    from the same noise and the same prompts. `count` images, of which each caption has `each` consecutive ones."""

    def __init__(self, name: str, count: int, seed: int = 1000, solids: int = SOLIDS, each: int = EACH):
        self.model, self.clip, self.vae = models.load(name)
        novel = "known" if solids == 1 else "new pairs"
        scenes = random_scenes(count // each, generator_of("evaluation", seed), novel, solids)
        self.scenes = scenes.take(torch.arange(len(scenes)).repeat_interleave(each))
        self.captions = [plain_caption(self.scenes, i) for i in range(len(self.scenes))]
        self.seed, self.each = seed, each
        self.negative = ""
        self._encoded: dict[str, tuple[Tensor, Tensor]] = {}

    def asking(self, captions: list[str], seed: int) -> "Demo":
        """A copy for other prompts and other noise."""
        other = copy.copy(self)
        other.captions, other.seed = captions, seed
        return other

    def encode(self, captions: list[str]) -> list:
        for caption in captions:
            if caption not in self._encoded:
                tokens = self.clip.tokenize(caption)
                self._encoded[caption] = self.clip.encode_from_tokens(tokens, return_pooled=True)
        cond, pooled = (torch.cat(part) for part in zip(*(self._encoded[c] for c in captions)))
        return [[cond, {"pooled_output": pooled}]]

    @torch.inference_mode()
    def sample(
        self,
        model: ModelPatcher,
        cfg: float,
        steps: int = 25,
        sampler: str | comfy.samplers.Sampler = "euler",
        batch: int | None = None,
    ) -> Tensor:
        """Images [n, 3, H, W] in 0..1, one per caption; each from the same noise whatever the batch."""
        if isinstance(sampler, str):
            sampler = comfy.samplers.sampler_object(sampler)
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)
        done, batch = [], batch or together()
        for start in range(0, len(self.captions), batch):
            guider = self.guider(model, cfg, self.captions[start : start + batch])
            noise = self.noise()[start : start + batch]
            latent = guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=0)
            done.append(self.decode(latent))
        return torch.cat(done)

    def guider(self, model: ModelPatcher, cfg: float, captions: list[str]) -> comfy.samplers.CFGGuider:
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(self.encode(captions), self.encode([self.negative]))  # one for all images
        guider.set_cfg(cfg)
        return guider

    def noise(self) -> Tensor:
        """The noise for all captions."""
        shape = (BATCH, models.CHANNELS, SIZE // models.DOWNSCALE, SIZE // models.DOWNSCALE)
        starts = range(0, len(self.captions), BATCH)
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(self.seed + start)) for start in starts]
        return torch.cat(noise)[: len(self.captions)]

    def encode_images(self, images: Tensor) -> Tensor:
        """Latents of RGB in 0..1 [n, 3, H, W]."""
        return self.vae.encode(images.movedim(1, -1))

    def decode(self, latent: Tensor) -> Tensor:
        return self.vae.decode(latent).movedim(-1, 1).cpu()


def device() -> torch.device:
    return comfy.model_management.get_torch_device()


def together() -> int:
    """Slices of images that are sampled in one batch."""
    return BATCH if device().type == "cpu" else 6 * BATCH


def found_in(images: Tensor) -> Found:
    """What the judge finds."""
    judge = load_judge().to(device())
    parts = [find(judge, batch.to(device())) for batch in images.split(250)]
    return Found(*(torch.cat([getattr(p, name) for p in parts]).cpu() for name in Found.__dataclass_fields__))


def drawn(scenes: Scenes) -> Tensor:
    """Images as the models were trained on, RGB in 0..1."""
    parts = [draw_on(device(), scenes.take(slice(i, i + 500))).cpu() for i in range(0, len(scenes), 500)]
    return torch.cat(parts).float() / 255


def drawn_like(solids: int = SOLIDS, count: int = 2000) -> Tensor:
    """Other scenes like those of the captions, to measure the distance to."""
    return drawn(random_scenes(count, generator_of("evaluation", 2), "new pairs", solids))


@dataclass
class EffectiveScale:
    """Collects omega_e over the steps and images of a run; put on a model after the nodes to be measured.

    The ratio of the sums over steps, not the mean of the ratios: in late steps the guidance is almost zero, and
    anything that is added would count as a huge scale."""

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
    """Counts the network evaluations of the runs of a model, a prediction for one image being one."""

    count: int = 0

    def __call__(self, executor, x, *args, **kwargs):
        self.count += len(x)
        return executor(x, *args, **kwargs)


def count_evaluations(model: ModelPatcher) -> Evaluations:
    """At the network itself: caches of other nodes answer in its place."""
    counted = Evaluations()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "guidekit_bench", counted)
    return counted
