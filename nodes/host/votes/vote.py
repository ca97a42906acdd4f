"""An image that was shown, and the vote on it."""

import functools
import hashlib
from dataclasses import dataclass, field, replace

import comfy.sample
import numpy as np
import torch
from torch import Tensor

LIKED, UNDECIDED, DISLIKED = 1, 0, -1


@dataclass(frozen=True)
class Noise:
    """How the host drew the initial noise of an image (comfy.sample.prepare_noise): it is row `index` of a tensor of
    `shape` from a generator with `seed`, after `skipped` other draws of that shape."""

    seed: int
    shape: tuple[int, ...]
    index: int = 0
    skipped: int = 0

    def tensor(self) -> Tensor:
        """[1, C, ...], standard normal, in float32 on the CPU, as in the host."""
        drawn = comfy.sample.prepare_noise(torch.zeros(self.shape), self.seed, [self.skipped] if self.skipped else None)
        return drawn[self.index : self.index + 1]


@dataclass(frozen=True)
class Lora:
    """A LoRA on the model. `digest`: the first half of the file's SHA-256, in hexadecimal; "" if there is no file."""

    name: str
    strength: float
    digest: str


@dataclass(frozen=True)
class Recipe:
    """How an image was made, as far as it is known; the rest is "" or None. An empty prompt is "", an unknown one
    None."""

    text: str | None = None  # the positive prompt
    negative_text: str | None = None
    seed: int | None = None
    noise: Noise | None = None  # only if the latent came from the sampler directly
    sampler: str = ""
    scheduler: str = ""
    steps: int | None = None
    cfg: float | None = None
    model_name: str = ""  # the file that was loaded
    model: str = ""  # digest.model_digest of the MODEL: its weights without patches
    policy: str = ""  # digest.policy_digest of the MODEL: its weights with their LoRAs
    loras: tuple[Lora, ...] = ()


@dataclass(frozen=True)
class Vote:
    """A row of the store. `id`: SHA-256 of the image's 8-bit pixels, so that equal images are one row. `latent`,
    `positive`, `negative`: names of files of the store, which are digests of their content; None if the image came
    without them. `label`: LIKED, DISLIKED, or UNDECIDED for an image that was shown and has no vote. `pair`: the name
    of an imported pair. `shown`, `voted`: seconds since 1970. `workflow`: the name of a stored JSON. `workflow_id` and
    `node`: where the image was shown last."""

    id: str
    width: int
    height: int
    recipe: Recipe = field(default_factory=Recipe)
    latent: str | None = None
    positive: str | None = None
    negative: str | None = None
    label: int = UNDECIDED
    tag: str = ""
    pair: str | None = None
    shown: float = 0.0
    voted: float | None = None
    workflow: str | None = None
    workflow_id: str = ""
    node: str = ""


def prompt_of(vote: Vote) -> str:
    """A text that is the same for images of one prompt."""
    return vote.recipe.text or f"prompt {vote.positive}"


@dataclass(frozen=True, eq=False)
class Offer:
    """An image to be stored. `pixels`: [H, W, 3], 8 bits; `latent`: [1, C, ...]; `positive`, `negative`: CONDITIONING
    of this image; `workflow`: JSON of the graph that made it; the others as in Vote."""

    pixels: np.ndarray
    recipe: Recipe
    latent: Tensor | None = None
    positive: list | None = None
    negative: list | None = None
    label: int = UNDECIDED
    tag: str = ""
    pair: str | None = None
    workflow: str | None = None
    workflow_id: str = ""
    node: str = ""

    @functools.cached_property
    def id(self) -> str:
        digest = hashlib.sha256(repr(self.pixels.shape).encode())
        digest.update(self.pixels.tobytes())
        return digest.hexdigest()

    def voted(self, label: int) -> "Offer":
        return replace(self, label=label)
