"""A second model that predicts in a run of the first: with its own weights, patches and parameterisation, at the same x
and sigma, for a prompt of the guider's or its own, which the host prepares for it.

The second model gets its own guider, and the sampling of the first runs as the "sampler" in that guider's run. So the
host itself does the loading, hooks, conditioning, wrappers and cleanup of the second model.

Relies on: CFGGuider.sample and its `original_conds` (comfy/samplers.py:1222, 1318); a guider called as
`guider(x, sigma, model_options, seed)` returning x0 (1206), by its `predict_noise` (1217).
"""

import copy
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple

import comfy.model_management
import comfy.model_sampling
import comfy.nested_tensor
import comfy.sampler_helpers
import comfy.samplers
import comfy.utils
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..predictions.per_sample_prompts import References
from ..run import Run, attach_around
from ..run.loaded_beside import load_beside
from .row_lora import COMPILED, set_unmerged, unmerged

_NONE = References(())


class Guest(NamedTuple):
    """A second model that is ready to predict: `guider(x, sigma, **extra_args)`."""

    guider: comfy.samplers.CFGGuider
    extra_args: dict


class Guests(dict):
    """State of one run: the `Guest` of each `SecondModel`."""

    def __init__(self, run: Run):
        super().__init__()


@dataclass(frozen=True, eq=False)
class SecondModel:
    """A second model and its prompt: the guider's prompt named `role`, or `prompt`, a conditioning in the host's form,
    if it is not None. `references`: more prompts, for `predict_chosen`."""

    model: ModelPatcher
    references: References = _NONE
    role: str = "positive"
    prompt: list | None = None

    def predict(self, run: Run, x: Tensor, sigma: Tensor) -> Tensor:
        """The denoised prediction, [B, ...], at `x` [B, ...] and `sigma` [B]."""
        guest = run.of(Guests)[self]
        return guest.guider(x, sigma, **guest.extra_args)

    def predict_chosen(self, run: Run, x: Tensor, sigma: Tensor, chosen: list[int]) -> tuple[Tensor, int]:
        """(predictions [B, ...], that of image b with prompt `chosen[b]` of the references; number of evaluations)"""
        guider = run.of(Guests)[self].guider
        positive = guider.conds["positive"]

        def evaluate(prompts: list[list[dict]]) -> list[Tensor]:
            found = []
            for prompt in prompts:
                guider.conds["positive"] = prompt
                found.append(self.predict(run, x, sigma))
            return found

        try:
            return self.references.pick(run, guider.conds, chosen, evaluate)
        finally:
            guider.conds["positive"] = positive

    def around(self, run: Run, guider, sample: Callable[[], Tensor], args: tuple, latent_shapes: list) -> Tensor:
        """The result of `sample()`, which is called while this model is ready to predict."""
        noise, latent, sampler, sigmas, mask, _, _, seed = args
        guest = self._guest(self._prompt_of(guider))
        inside = _Inside(self, run, sample, sampler)
        if len(latent_shapes) > 1:
            noise, latent = (
                comfy.nested_tensor.NestedTensor(comfy.utils.unpack_latents(t, latent_shapes)) for t in (noise, latent)
            )
            mask = (
                None
                if mask is None
                else comfy.nested_tensor.NestedTensor(comfy.utils.unpack_latents(mask, latent_shapes))
            )
        guest.sample(noise, latent, inside, sigmas, mask, None, True, seed)
        return inside.result

    def _guest(self, prompt: list[dict]) -> comfy.samplers.CFGGuider:
        if self.role == "negative":
            guest = _NegativeAlone(self.model)
            # Under both names, for models that are loaded beside this one.
            guest.original_conds = {"positive": [{**e, "uuid": uuid.uuid4()} for e in prompt], "negative": prompt}
        else:
            guest = comfy.samplers.CFGGuider(self.model)
            guest.original_conds = {"positive": prompt}
        guest.original_conds |= self.references.prompts(guest.original_conds["positive"])
        return guest

    def _prompt_of(self, guider) -> list[dict]:
        if self.prompt is not None:
            return comfy.sampler_helpers.convert_cond(self.prompt)
        # A guider without a negative never uses its prediction.
        return guider.original_conds.get(self.role) or guider.original_conds["positive"]


class _NegativeAlone(comfy.samplers.CFGGuider):
    """Predicts its prompt as a negative, so that patches of the model that act on negatives only do so."""

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006 the host's signature
        alone = None, self.conds["negative"], 1.0  # uncond, cond, cfg: predicts the negative alone
        return comfy.samplers.sampling_function(self.inner_model, x, timestep, *alone, model_options, seed)


class _Inside:
    """A "sampler" of the second model that runs the sampling of the first. `sampler_function`, `extra_options`: those
    of the first's sampler, from which a run knows the order of evaluations; `result`: the sampled latent,
    afterwards."""

    result: Tensor

    def __init__(self, second: SecondModel, run: Run, sample: Callable[[], Tensor], sampler):
        self.second, self.run, self._sample = second, run, sample
        self.sampler_function = getattr(sampler, "sampler_function", None)
        self.extra_options = getattr(sampler, "extra_options", {})

    def sample(self, guider, sigmas, extra_args, callback, noise, latent, mask=None, disable_pbar=False) -> Tensor:
        guests, callbacks = self.run.of(Guests), [] if callback is None else [callback]
        guests[self.second] = Guest(guider, extra_args)
        self.run.step_callbacks += callbacks
        try:
            self.result = self._sample()
        finally:
            del guests[self.second]
            for each in callbacks:
                self.run.step_callbacks.remove(each)
        return noise


def add_second_model(
    model: ModelPatcher,
    other: ModelPatcher,
    references: References = _NONE,
    role: str = "positive",
    prompt: list | None = None,
) -> SecondModel:
    """Makes `other` predict in the runs of a (cloned) model, with its own weights; if they are the same network with
    other patches, a copy is made. The arguments are those of `SecondModel`.

    Raises:
        ValueError: models that do not share latents or noise.
    """
    for name, say in (("latent_format", "latents"), ("model_sampling", "noise")):
        found = [_kind(patcher.get_model_object(name)) for patcher in (model, other)]
        if found[0] != found[1]:
            names = " and ".join(type(patcher.model).__name__ for patcher in (model, other))
            raise ValueError(
                f"{names} work on different {say} ({found[0]}, {found[1]}), so their predictions cannot be compared. "
                "Use a second model of the same family, for instance an earlier, smaller or less tuned one."
            )
    if other.model is model.model and not _loads_alike(model, other):
        other = separated(other)
    second = SecondModel(other, references, role, prompt)
    load_beside(model, [other])
    attach_around(model, second.around)
    return second


def _loads_alike(model: ModelPatcher, other: ModelPatcher) -> bool:
    """Whether two patchers of one network load it with the same patches."""
    if model.patches.keys() != other.patches.keys():
        return False
    pairs = [pair for key in model.patches for pair in zip_longest(model.patches[key], other.patches[key])]
    return all(one is another for one, another in pairs) and all(
        getattr(model, name) == getattr(other, name) for name in ("object_patches", "injections", "hook_patches")
    )


def _kind(part) -> str:
    if isinstance(part, comfy.model_sampling.CONST):
        return "a straight path from data to noise"
    if hasattr(part, "percent_to_sigma"):
        return "data plus noise"
    return type(part).__name__


def separated(model: ModelPatcher) -> ModelPatcher:
    """`model` with a copy of the weights, so that both can be patched differently and loaded together. A model with
    dynamic VRAM, whose weights may be anywhere, is loaded anew by its loader, without that.

    Raises:
        ValueError: its loader cannot do that, or another node has put layers into the network.
    """
    if model.injections:  # made for the layers of this network
        raise ValueError(
            f"A copy of the model is needed, which cannot have what other nodes have put into its layers "
            f"({', '.join(map(str, model.injections))}). Load LoRAs without bypass, or take that node off the model."
        )
    if is_dynamic(model):
        if model.cached_patcher_init is None:
            raise ValueError(
                "A second copy of the model is needed, and ComfyUI cannot load it once more after the node that it was "
                "loaded with. Use ComfyUI's own (Load Checkpoint, Load Diffusion Model), or start ComfyUI with "
                "--disable-dynamic-vram."
            )
        return _not_compiled(model.clone(disable_dynamic=True))
    comfy.model_management.unload_all_models()  # also removes all patches from the weights
    config = model.model.model_config  # shared: it returns None for any missing attribute, which breaks deepcopy
    copied = copy.deepcopy(model.model, {id(config): config})
    copied = ModelPatcher(copied, model.load_device, model.offload_device)
    return _not_compiled(model.clone(model_override=copied.get_clone_model_override()))


def _not_compiled(copied: ModelPatcher) -> ModelPatcher:
    """What was compiled are the layers of the other network."""
    copied.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, COMPILED)
    return copied


def is_dynamic(model: ModelPatcher) -> bool:
    """Whether the host keeps its weights in dynamic VRAM (comfy-aimdo)."""
    known = getattr(model, "is_dynamic", None)
    return known is not None and known()


def with_lora_strength(model: ModelPatcher, factor: float) -> ModelPatcher:
    """A clone of `model` with the strength of all its LoRAs multiplied by `factor`.

    Raises:
        ValueError: a model without LoRAs.
    """
    added = {key for key, patches in model.patches.items() if any(_is_added(patch) for patch in patches)}
    beside = unmerged(model)
    if not added and not beside:
        raise ValueError(
            "The model has no LoRA whose strength could be changed. Put a LoRA loader before this node, or connect "
            "another model."
        )
    other = model.clone()
    for key in added:
        other.patches[key] = [(p[0] * factor, *p[1:]) if _is_added(p) else p for p in other.patches[key]]
    other.patches_uuid = uuid.uuid4()
    if beside:
        set_unmerged(other, tuple(each.times(factor) for each in beside))
    return other


def _is_added(patch: tuple) -> bool:
    """Whether a patch (strength, what, strength of the weight, ...) only adds to the weight; model merges scale it."""
    return patch[2] == 1.0
