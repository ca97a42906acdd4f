"""Attaches techniques to a model. Each sampling run gets a `Run`, created when sampling starts and dropped when it
ends, also by an error or an interrupt.

Relies on: CFGGuider.sample clones `model_options` before the OUTER_SAMPLE wrappers and restores it in its own `finally`
(comfy/samplers.py:1318-1345), so that the hooks of a run end with it; wrappers are kept by key on the patcher
(comfy/model_patcher.py:1317); PREDICT_NOISE wrappers run once per evaluation (samplers.py:1211); CALC_COND_BATCH
wrappers are given the prompts that are evaluated (samplers.py:214).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import comfy.model_patcher
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy_execution.utils import get_executing_context
from torch import Tensor

from .report import all_techniques, report
from .run import Run
from .told import TOLD, shown

KEY = "guidekit"
_RUN = "guidekit_run"
_HOOKS, _AROUND, _NODES = "hooks", "around", "nodes"  # keys in the same dict that are not kinds of techniques

Hook = Callable[[Run, Any], None]
Around = Callable[[Run, Any, Callable[[], Tensor], tuple, list], Tensor]


class Part:
    """A part of a technique that is attached separately and reports under the name of its `technique`."""

    technique: Any

    @property
    def label(self) -> str:
        return self.technique.label

    @property
    def idle_reason(self) -> str:
        return self.technique.idle_reason


def current_run(model_options: dict) -> Run:
    """The run that `model_options` (or the `transformer_options` inside it) belongs to.

    Raises:
        RuntimeError: the model is evaluated outside a guider's run.
    """
    run = find_run(model_options)
    if run is None:
        raise RuntimeError(
            "A Guidekit node is on this model, but the sampler in use evaluates the model outside ComfyUI's guider "
            "(CFGGuider.sample). Use KSampler, SamplerCustom or SamplerCustomAdvanced."
        )
    return run


def find_run(model_options: dict) -> Run | None:
    """`current_run`, or None if no Guidekit node is on the model."""
    return model_options.get("transformer_options", model_options).get(_RUN)


def attach(model: ModelPatcher, kind: str, technique: Any) -> None:
    """Puts `technique` on a (cloned) model, whose runs get a `Run` from now on. Its messages appear under the node that
    is executing now; the schema of that node has to say not_idempotent, or the host would reuse the output of an equal
    node, and with it that node's id."""
    # clone() copies the lists and dicts of model_options, so each branch of a graph has its own.
    ours, context = model.model_options.setdefault(KEY, {}), get_executing_context()
    ours.setdefault(kind, []).append(technique)
    ours.setdefault(_NODES, {})[technique] = context and shown(context.node_id)
    if not model.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY):
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, _sample)


def attach_hook(model: ModelPatcher, hook: Hook) -> None:
    """Calls `hook(run, guider)` when a run of a (cloned) model starts, once even if attached several times. It can wrap
    what other nodes have put into `guider.model_options`; its changes there end with the run."""
    hooks = model.model_options.setdefault(KEY, {}).setdefault(_HOOKS, [])
    if hook not in hooks:
        hooks.append(hook)


def attach_around(model: ModelPatcher, around: Around) -> None:
    """Runs the sampler of a (cloned) model inside `around(run, guider, sample, args, latent_shapes)`, which returns the
    result of `sample()`; `args`: the arguments of the host's OUTER_SAMPLE wrappers."""
    model.model_options.setdefault(KEY, {}).setdefault(_AROUND, []).append(around)


def techniques_of(model_options: dict) -> dict[str, list]:
    """The techniques on a model, by kind."""
    return {kind: each for kind, each in model_options.get(KEY, {}).items() if kind not in (_HOOKS, _AROUND, _NODES)}


def wrap_run(guider, kind: str, wrapper: Callable, *, outermost: bool) -> None:
    """For hooks: adds `wrapper` of the host's `kind` to this run, around those of other nodes or, not `outermost`,
    inside them."""
    wrappers = guider.model_options.setdefault("transformer_options", {}).setdefault("wrappers", {})
    ours, others = {f"{KEY} {wrapper.__module__}": [wrapper]}, wrappers.get(kind, {})
    wrappers[kind] = {**ours, **others} if outermost else {**others, **ours}


def _sample(executor, *args, **kwargs):
    guider = executor.class_obj
    noise, _, sampler, sigmas, _, callback, *rest = args
    latent_shapes = kwargs.get("latent_shapes") or [noise.shape]
    _check_latent(guider, latent_shapes)
    options = guider.model_options
    # The host's guiders clone them for every run; a guider of another pack might not.
    guider.model_options = comfy.model_patcher.create_model_options_clone(options)
    run = Run(guider, sampler, sigmas, latent_shapes, techniques_of(options), options[KEY].get(_NODES, {}))
    if run.context is not None:
        TOLD.begin(run.context)
    if callback is not None:
        run.step_callbacks.append(callback)

    def on_step(step: int, *values):
        run.clock.callback(step)
        for each in run.step_callbacks:
            each(step, *values)

    def sample():
        return executor(*args[:5], on_step, *rest, **kwargs)

    try:
        guider.model_options.setdefault("transformer_options", {})[_RUN] = run
        wrap_run(guider, WrappersMP.PREDICT_NOISE, _predict, outermost=True)
        wrap_run(guider, WrappersMP.CALC_COND_BATCH, _calc_cond_batch, outermost=True)
        for hook in options[KEY].get(_HOOKS, ()):
            hook(run, guider)
        for technique in all_techniques(run):
            if begin := getattr(technique, "begin", None):
                begin(run, guider)
        for around in options[KEY].get(_AROUND, ()):
            sample = partial(around, run, guider, sample, args, latent_shapes)
        samples = sample()
    finally:
        guider.model_options = options
    run.end()
    report(run)
    _check_finite(samples)
    return samples


def _predict(executor, x: Tensor, timestep: Tensor, *args, **kwargs):
    current_run(executor.class_obj.model_options).begin_evaluation(timestep)
    return executor(x, timestep, *args, **kwargs)


def _calc_cond_batch(executor, model, conds: list, x: Tensor, timestep: Tensor, model_options: dict):
    current_run(model_options).prompts.see(conds)
    return executor(model, conds, x, timestep, model_options)


def _check_latent(guider, latent_shapes: list) -> None:
    shape = latent_shapes[0]
    if shape[0] == 0:
        raise ValueError("The latent has a batch of 0 samples. Give at least one.")
    wanted = guider.model_patcher.get_model_object("latent_format").latent_channels
    if len(latent_shapes) == 1 and shape[1] != wanted:
        name = type(guider.model_patcher.model).__name__
        raise ValueError(
            f"The latent has {shape[1]} channels (shape {tuple(shape)}), but {name} takes {wanted}. "
            "Make the latent with an empty-latent node, or encode the image with this model's VAE."
        )


def _check_finite(samples: Tensor) -> None:
    if not torch.isfinite(samples).all():
        raise ValueError(
            "The sampled latent holds NaN or infinity: a prediction of the model was not finite. Usual causes are a "
            "network in float16 that overflows (start ComfyUI with --force-fp32 or use bfloat16 weights), a damaged "
            "checkpoint or LoRA, or a very large guidance scale."
        )
