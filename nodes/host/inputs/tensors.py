"""LATENT, SIGMAS, MASK and IMAGE: tensors of the right rank, not empty, finite.

Relies on: fix_empty_latent_channels, which the host's samplers call first (comfy/sample.py:40); `latent_dimensions` and
`latent_channels` of latent formats (comfy/latent_formats.py:6); NestedTensor for latents of several streams.
"""

from typing import Any

import comfy.sample
import torch
from comfy.model_patcher import ModelPatcher
from comfy.nested_tensor import NestedTensor
from comfy_api.latest import io
from torch import Tensor

from ..run.messages import quoted

_AXES = {1: "length", 2: "height, width", 3: "frames, height, width"}


def latent(name: str, value: Any, wanted: io.Latent.Input) -> dict:
    """A LATENT of any rank, or of several streams; `fit_latent` checks that it fits a model."""
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {quoted(value)}. Connect a LATENT.")
    samples = value.get("samples")
    for stream in samples.unbind() if isinstance(samples, NestedTensor) else [samples]:
        if not isinstance(stream, Tensor) or stream.ndim < 3 or not stream.is_floating_point():
            shown = quoted(stream) + (f" of {stream.dtype}" if isinstance(stream, Tensor) else "")
            raise ValueError(f"The samples of {name} are {shown}. They are floats [batch, channels, ...].")
        check_tensor(f"The samples of {name}", stream)
    return value


def fit_latent(model: ModelPatcher, samples: Tensor, name: str) -> Tensor:
    """`samples` [B, C, ...] as the model accepts them, converted as in the host's samplers: an image for a video model
    becomes a video of one frame.

    Raises:
        ValueError: they have several streams, or other channels or another rank than the model's latents.
    """
    if samples.is_nested:
        raise ValueError(f"{name} holds image and sound, each in a stream of its own. Give a latent of one kind.")
    samples = comfy.sample.fix_empty_latent_channels(model, samples)
    form = model.get_model_object("latent_format")
    if samples.ndim != form.latent_dimensions + 2 or samples.shape[1] != form.latent_channels:
        raise ValueError(
            f"{name} has shape {tuple(samples.shape)}, but {type(model.model).__name__} takes [batch, "
            f"{form.latent_channels} channels, {_AXES[form.latent_dimensions]}]. Make it with an empty-latent node for "
            "this model, or encode an image with this model's VAE."
        )
    return samples


def sigmas(name: str, value: Any, wanted: io.Sigmas.Input) -> Tensor:
    """SIGMAS [N], floats, finite and not negative. Raises ValueError for anything else."""
    if not isinstance(value, Tensor) or value.ndim != 1 or value.is_complex() or value.dtype == torch.bool:
        raise ValueError(f"{name} are {quoted(value)}. They are noise levels in a row, as BasicScheduler gives them.")
    value = value if value.is_floating_point() else value.float()
    if not torch.isfinite(value).all() or (value < 0).any():
        raise ValueError(f"{name} hold NaN, infinity or numbers below 0. They are noise levels, 0 or above.")
    return value


def mask(name: str, value: Any, wanted: io.Mask.Input) -> Tensor:
    """A MASK as [B, H, W]."""
    if not isinstance(value, Tensor) or not 2 <= value.ndim <= 4 or value.is_complex():
        raise ValueError(f"{name} is {quoted(value)}. It is a MASK [batch, height, width].")
    check_tensor(f"The values of {name}", value)
    value = value if value.is_floating_point() else value.float()
    return value.reshape(-1, *value.shape[-2:])


def images(name: str, value: Any, wanted: io.Image.Input) -> Tensor:
    """An IMAGE [B, H, W, 1, 3 or 4]."""
    if not isinstance(value, Tensor) or value.ndim != 4 or not value.is_floating_point():
        shown = quoted(value) + (f" of {value.dtype}" if isinstance(value, Tensor) else "")
        raise ValueError(f"{name} is {shown}. It is an IMAGE: floats [batch, height, width, channels].")
    check_tensor(f"The values of {name}", value)
    if value.shape[-1] not in (1, 3, 4):
        raise ValueError(f"{name} is {quoted(value)}. An IMAGE has 1, 3 or 4 channels, which come last.")
    return value


def check_tensor(name: str, value: Tensor) -> None:
    """Checks a tensor.

    Raises:
        ValueError: it is empty, or holds NaN or infinity.
    """
    if 0 in value.shape:
        raise ValueError(f"{name} have shape {tuple(value.shape)}: there is nothing in them. Give at least one.")
    if not torch.isfinite(value).all():
        raise ValueError(f"{name} hold NaN or infinity (shape {tuple(value.shape)}). Make them again.")
