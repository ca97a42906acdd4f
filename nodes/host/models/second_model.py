"""A second model that predicts along with the first: its own weights, patches and parameterisation, the same x and
sigma, and a prompt of the guider's or one of its own, prepared by the host for it.

The second model gets a guider of its own, and the first one's sampling runs as the "sampler" inside that guider's run.
So loading, hooks, conditioning, wrappers and cleaning up of the second are the host's own work.

Relies on: CFGGuider.sample and its `original_conds` (comfy/samplers.py:1222, 1318); a guider called as
`guider(x, sigma, model_options, seed)` gives x0 (1206), by its `predict_noise` (1217).
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
from torch import Tensor

from ..predictions.per_sample_prompts import References
from ..run import Run, attach_around
from ..run.loaded_beside import load_beside
from .row_lora import set_unmerged, unmerged

_NONE = References(())


class Guest(NamedTuple):
    """A second model that is ready to predict: `guider(x, sigma, **extra_args)`."""

    guider: comfy.samplers.CFGGuider
    extra_args: dict


class Guests(dict):
    """Of one run: the `Guest` of each `SecondModel`."""

    def __init__(self, run: Run):
        super().__init__()


@dataclass(frozen=True, eq=False)
class SecondModel:
    """`predict(run, x, sigma)` is its denoised prediction for the guider's prompt of the name `role`, or for `prompt`,
    a conditioning in the host's form. `references`: of which it can predict too."""

    model: ModelPatcher
    references: References = _NONE
    role: str = "positive"
    prompt: list | None = None

    def predict(self, run: Run, x: Tensor, sigma: Tensor) -> Tensor:
        guest = run.of(Guests)[self]
        return guest.guider(x, sigma, **guest.extra_args)

    def predict_chosen(self, run: Run, x: Tensor, sigma: Tensor, chosen: list[int]) -> tuple[Tensor, int]:
        """(for image b of the batch, with prompt `chosen[b]` of the references; evaluations)"""
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
        """`sample()`, with this model ready to predict."""
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
            # Models beside this one find it as the positive too.
            guest.original_conds = {"positive": [{**e, "uuid": uuid.uuid4()} for e in prompt], "negative": prompt}
        else:
            guest = comfy.samplers.CFGGuider(self.model)
            guest.original_conds = {"positive": prompt}
        guest.original_conds |= self.references.prompts()
        return guest

    def _prompt_of(self, guider) -> list[dict]:
        if self.prompt is not None:
            return comfy.sampler_helpers.convert_cond(self.prompt)
        # A guider without a negative never asks for its prediction.
        return guider.original_conds.get(self.role) or guider.original_conds["positive"]


class _NegativeAlone(comfy.samplers.CFGGuider):
    """Predicts its negative, as one: what a model has for negatives only is on it."""

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006 the host's signature
        alone = None, self.conds["negative"], 1.0  # in the positive's place, at cfg 1
        return comfy.samplers.sampling_function(self.inner_model, x, timestep, *alone, model_options, seed)


class _Inside:
    """As a sampler of the second model: runs the first model's sampling. `sampler_function` and `extra_options` are
    those of the first, by which a run knows the order of evaluations; `result`: of its sampling, once that is over."""

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
    """Makes `other` predict in the runs of a (cloned) model, with weights of its own.

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
    """Whether two patchers of one network put the same into it."""
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
    """`model` with a copy of the weights, so that both can be patched differently and loaded together."""
    comfy.model_management.unload_all_models()  # which also takes all patches out of the weights
    config = model.model.model_config  # shared: it answers None for whatever it has not, which no copy survives
    copied = copy.deepcopy(model.model, {id(config): config})
    copied = ModelPatcher(copied, model.load_device, model.offload_device)
    return model.clone(model_override=copied.get_clone_model_override())


def with_lora_strength(model: ModelPatcher, factor: float) -> ModelPatcher:
    """A clone of `model` whose LoRAs have `factor` times their strength.

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
    """Whether a patch (strength, what, strength of the weight, ...) leaves the weight as it is; merges do not."""
    return patch[2] == 1.0
