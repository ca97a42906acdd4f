"""Turns the inputs of a node that shows images into what the store keeps of each image.

Relies on: IMAGE [batch, height, width, channels] in 0..1, whose 8-bit form is that of core's Save Image
(nodes.py:1663); `samples` and `batch_index` of a LATENT; prepare_noise of the host's samplers (comfy/sample.py:27);
`prompt`, `extra_pnginfo` and `unique_id` of a node's hidden inputs; `is_changed` in a prompt's nodes (execution.py:84).
"""

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from . import blobs
from .recipe import is_direct, read_recipe, whole_text, with_model
from .vote import Noise, Offer, Recipe

MOST = 4096  # images at once
MOST_WORKFLOW = 2**22  # characters


@dataclass(frozen=True, eq=False)
class Shown:
    """The inputs of a node that shows images. `hidden`: its hidden inputs, None outside a graph. `latent`, `model`,
    `positive` and `negative` may be None. `alone`: False if they are one of several entries of a list, each of which
    may have its own seed."""

    images: Tensor
    latent: dict | None
    model: ModelPatcher | None
    positive: list | None
    negative: list | None
    tag: str
    hidden: Any = None
    alone: bool = True

    def offers(self) -> list[Offer]:
        """One for each image. Raises ValueError if the latents are not those of the images."""
        samples = self._samples
        if samples is not None and samples.is_nested:
            raise ValueError("samples hold image and sound, each in a stream of its own. Give a latent of one kind.")
        images = self._one_for_each(samples)
        recipe, direct = self._recipe()
        batch = len(images)
        workflow, workflow_id, node = self._workflow(), self._workflow_id, self._node
        return [
            Offer(
                pixels=pixels_of(image),
                recipe=replace(recipe, noise=self._noise(recipe, index) if direct else None),
                latent=_small(samples[index : index + 1]) if samples is not None else None,
                positive=_small_prompt(self.positive, index, batch),
                negative=_small_prompt(self.negative, index, batch),
                tag=self.tag,
                workflow=workflow,
                workflow_id=workflow_id,
                node=node,
            )
            for index, image in enumerate(images)
        ]

    def lacks(self) -> list[str]:
        """Sentences about what is not kept, and what that means for training."""
        found = []
        samples = self._samples
        if samples is None:
            found.append("No samples are connected: training will need the VAE to encode the images.")
        if self.positive is None:
            found.append("No positive is connected: training will need the CLIP to encode the prompts.")
        if self.model is None:
            found.append("No model is connected: training cannot tell which LoRA made an image.")
        for name, prompt in (("positive", self.positive), ("negative", self.negative)):
            if prompt is not None and (lost := blobs.not_kept(prompt)):
                found.append(f"{', '.join(lost)[:200]} of {name} cannot be kept: training will go without.")
            if prompt is not None and _small_prompt(prompt, 0, len(self.images)) is None:
                found.append(f"The tensors of {name} are too large to be kept: training will need the CLIP.")
        if samples is not None and _small(samples[:1]) is None:
            found.append("The latents are too large to be kept: training will need the VAE to encode the images.")
        if self._nodes and self._workflow() is None:
            found.append("The workflow is too large to be kept with the images, or is no JSON.")
        return found

    def _one_for_each(self, samples: Tensor | None) -> Tensor:
        """One image for each latent: the middle frame of a video."""
        images = self.images
        if samples is not None and samples.ndim == 5 and len(images) % len(samples) == 0:
            frames = len(images) // len(samples)
            images = images[frames // 2 :: frames]
        if samples is not None and len(images) != len(samples):
            raise ValueError(
                f"There are {len(images)} images and {len(samples)} latents. Connect the latent that the images were "
                "decoded from."
            )
        if len(images) > MOST:
            raise ValueError(f"There are {len(images)} images. Up to {MOST} are shown at once.")
        return images

    def _recipe(self) -> tuple[Recipe, bool]:
        """The recipe that the images share, and whether the noise of each is known."""
        nodes = self._nodes
        given = nodes[self._id]["inputs"] if self._id in nodes else {}
        names = {"latent": "samples", "model": "model", "positive": "positive", "negative": "negative"}
        links = {name: given.get(own) for name, own in names.items()}
        recipe = read_recipe(nodes, **{**links, "latent": links["latent"] or given.get("images")})
        return (recipe if self.model is None else with_model(recipe, self.model)), is_direct(nodes, links["latent"])

    def _noise(self, recipe: Recipe, index: int) -> Noise | None:
        if self.latent is None or recipe.seed is None or not self.alone:
            return None
        shape, places = tuple(self.latent["samples"].shape), self.latent.get("batch_index")
        if places is None:
            return Noise(recipe.seed, shape, index)
        return Noise(recipe.seed, (1, *shape[1:]), 0, int(places[index])) if index < len(places) else None

    @property
    def _samples(self) -> Tensor | None:
        return None if self.latent is None else self.latent["samples"]

    @property
    def _nodes(self) -> dict:
        return (self.hidden and self.hidden.prompt) or {}

    @property
    def _id(self) -> str:
        return str((self.hidden and self.hidden.unique_id) or "")

    @property
    def _node(self) -> str:
        return self._id.partition(".")[0]

    @property
    def _graph(self) -> dict:
        info = (self.hidden and self.hidden.extra_pnginfo) or {}
        found = info.get("workflow") if isinstance(info, dict) else None
        return found if isinstance(found, dict) else {}

    @property
    def _workflow_id(self) -> str:
        found = self._graph.get("id")
        return whole_text(found[:100]) if isinstance(found, str) else ""

    def _workflow(self) -> str | None:
        """JSON; None where there is none, or it cannot be kept."""
        # As it was queued: while a prompt runs, the host adds the results of fingerprints, which may be NaN.
        nodes = {key: {k: v for k, v in node.items() if k != "is_changed"} for key, node in self._nodes.items()}
        parts = {name: part for name, part in (("prompt", nodes), ("workflow", self._graph)) if part}
        try:
            text = json.dumps(parts, allow_nan=False) if parts else None
        except ValueError:
            return None
        return text if text is None or len(text) <= MOST_WORKFLOW else None


def pixels_of(image: Tensor) -> np.ndarray:
    """[H, W, 3] in 8 bits, rounded as core's Save Image does. `image`: [H, W, 1, 3 or 4]; grey becomes RGB, alpha is
    dropped."""
    pixels = np.clip(255.0 * image.float().cpu().numpy(), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(pixels[..., :3], (*pixels.shape[:2], 3)))


def _small(latent: Tensor) -> Tensor | None:
    return latent.detach().cpu().clone() if latent.nbytes <= blobs.LARGEST else None


def _small_prompt(prompt: list | None, index: int, batch: int) -> list | None:
    if prompt is None:
        return None
    row = blobs.row_of(prompt, index, batch)
    tensors = [value for tokens, options in row for value in (tokens, *options.values()) if torch.is_tensor(value)]
    return row if sum(tensor.nbytes for tensor in tensors) <= blobs.LARGEST else None
