"""One image that was shown, and the vote on it."""

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
    """How the host made the noise that an image was sampled from (comfy.sample.prepare_noise): `shape` of one draw with
    `seed`; before it there were `skipped` others of that shape; the image is row `index` of it."""

    seed: int
    shape: tuple[int, ...]
    index: int = 0
    skipped: int = 0

    def tensor(self) -> Tensor:
        """[1, C, ...], standard normal, in float32 on the CPU, where the host makes it."""
        drawn = comfy.sample.prepare_noise(torch.zeros(self.shape), self.seed, [self.skipped] if self.skipped else None)
        return drawn[self.index : self.index + 1]


@dataclass(frozen=True)
class Lora:
    """`digest`: the first half of the file's SHA-256, in hexadecimal; "" if the file is gone."""

    name: str
    strength: float
    digest: str


@dataclass(frozen=True)
class Recipe:
    """How an image was made, as far as the graph that made it says so: what it does not is "" or None. A prompt may be
    empty, and is then ""; one that is not known is None."""

    text: str | None = None  # of the positive prompt
    negative_text: str | None = None
    seed: int | None = None
    noise: Noise | None = None  # only where the latent comes from the sampler directly
    sampler: str = ""
    scheduler: str = ""
    steps: int | None = None
    cfg: float | None = None
    model_name: str = ""  # the loader's file
    model: str = ""  # digest.model_digest: of the weights without patches
    policy: str = ""  # digest.policy_digest: of the weights with their LoRAs: the one that made the image
    loras: tuple[Lora, ...] = ()


@dataclass(frozen=True)
class Vote:
    """A row of the store. `id`: SHA-256 of the image's 8-bit pixels, by which the same image is one row. `latent`,
    `positive`, `negative` name files of the store by their content, and are None where the image came without.
    `label`: LIKED, DISLIKED, or UNDECIDED for an image that was shown and not voted on. `pair`: the name of an imported
    pair. `shown`, `voted`: seconds since 1970. `workflow`: names a stored JSON; `workflow_id` and `node`: where it was
    shown, which is for the page."""

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
    """The same for images of one prompt."""
    return vote.recipe.text or f"prompt {vote.positive}"


@dataclass(frozen=True, eq=False)
class Offer:
    """An image that is shown. `pixels`: [H, W, 3], 8 bits; `latent`: [1, C, ...]; `label` as in Vote. `workflow`: JSON
    of the graph that made it."""

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
        digest.update(np.ascontiguousarray(self.pixels))
        return digest.hexdigest()

    def voted(self, label: int) -> "Offer":
        return replace(self, label=label)
