"""The outputs of a network for noised images, in the host's own sampling.

Training runs as the "sampler" of a guider, so that loading, hooks, wrappers and cleaning up are the host's work, and
whatever other nodes have put on the model is there.

Relies on: CFGGuider.sample, which hands a sampler itself, `inner_model` being the model, and model options
(comfy/samplers.py:1222); process_conds, calc_cond_batch (773, 214); PREPARE_SAMPLING wrappers, by which the host asks
how much memory is needed (comfy/sampler_helpers.py:181); `optimized_attention_override` among the model options
(comfy/ldm/modules/attention.py).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.ldm.modules.attention import attention_basic
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..predictions.per_sample_prompts import joined
from ..run.raw_predictions import to_raw

T = TypeVar("T")
_KEPT = 8  # times the memory of a prediction, for what a gradient needs


@dataclass(eq=False)
class Session:
    """A model that is loaded. All latents are as the network has them (`enter`)."""

    base: BaseModel
    options: dict
    device: torch.device
    guider: comfy.samplers.CFGGuider
    _prompts: dict[tuple, tuple[list, list[dict]]] = field(default_factory=dict)

    @property
    def sampling(self) -> Any:
        return self.base.model_sampling

    def enter(self, latents: Tensor) -> Tensor:
        """From a VAE's latents."""
        return self.base.process_latent_in(latents.detach().to(self.device, torch.float32))

    def sigma(self, level: float) -> float:
        """At a share of the training time, 1 being the most noise."""
        return float(self.sampling.percent_to_sigma(1 - level))

    def noised(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(noised latents, what the network's output should be for them: eps, v or velocity)"""
        x = self.sampling.noise_scaling(_column(sigma, x0), noise, x0)
        return x, to_raw(self.sampling, x, x0, sigma)

    def prompt(self, conditioning: list, shape: tuple[int, ...]) -> list[dict]:
        """A CONDITIONING for latents of a shape, [1, ...], ready for `output`."""
        key = id(conditioning), shape
        if key not in self._prompts:
            entries = {"positive": comfy.sampler_helpers.convert_cond(with_gradients(conditioning))}
            blank = torch.zeros(shape, device=self.device)
            prepared = comfy.samplers.process_conds(self.base, blank, entries, self.device, blank, None, 0)
            self._prompts[key] = conditioning, prepared["positive"]  # kept, so that the id stays its own
        return self._prompts[key][1]

    def output(self, prompts: list[list[dict]], x: Tensor, sigma: Tensor) -> Tensor:
        """Of the network, for latents [B, ...] with a prompt each, which fit into one (`together`)."""
        prompt = together(prompts)
        [denoised] = comfy.samplers.calc_cond_batch(self.base, [prompt], x, sigma, self.options)
        return to_raw(self.sampling, x, denoised, sigma)


def with_gradients(tree: Any) -> Any:
    """A CONDITIONING whose tensors autograd may keep, which it does not with those that a node has made (in torch's
    inference mode), and that lead nowhere: what has made them is not trained."""
    if isinstance(tree, Tensor):
        tree = tree.detach()
        return tree.clone() if tree.is_inference() and not torch.is_inference_mode_enabled() else tree
    if isinstance(tree, dict):
        return {key: with_gradients(value) for key, value in tree.items()}
    return [with_gradients(each) for each in tree] if isinstance(tree, list | tuple) else tree


def together(prompts: list[list[dict]]) -> list[dict] | None:
    """One prompt for several images of a batch; None where they do not fit into one."""
    if all(prompt is prompts[0] for prompt in prompts):
        return prompts[0]
    if any(len(prompt) != 1 for prompt in prompts):
        return None
    entry = joined([prompt[0] for prompt in prompts])
    return None if entry is None else [entry]


def in_session(model: ModelPatcher, example: list, shape: tuple[int, ...], work: Callable[[Session], T]) -> T:
    """`work` with a model that is loaded. `example`, `shape`: a prompt and the latents of a batch, by which the host
    knows what memory is needed."""
    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, "guidekit_training", _ask_for_more)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(example, example)
    sampler = _Work(work)
    blank = torch.zeros(shape)
    guider.sample(blank, blank, sampler, torch.tensor([1.0, 0.0]), disable_pbar=True, seed=0)
    return sampler.result


class _Work(comfy.samplers.Sampler, Generic[T]):
    result: T

    def __init__(self, work: Callable[[Session], T]):
        self.work = work

    def sample(
        self, guider, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        options, device = extra_args["model_options"], noise.device
        if device.type == "cpu":  # the fused attention's backward pass takes longer there than all the rest
            options["transformer_options"].setdefault("optimized_attention_override", _plain_attention)
        self.result = self.work(Session(guider.inner_model, options, device, guider))
        return noise


def _plain_attention(_attention: Callable, *args, **kwargs) -> Tensor:
    return attention_basic(*args, **kwargs)


def _ask_for_more(executor, model, noise_shape, *args, **kwargs):
    return executor(model, [_KEPT * noise_shape[0], *noise_shape[1:]], *args, **kwargs)


def _column(sigma: Tensor, like: Tensor) -> Tensor:
    return sigma.reshape(-1, *[1] * (like.ndim - 1))
