"""The state of one sampling run: made when it starts, dropped when it ends, however it ends.

Relies on: CFGGuider.sample clones `model_options` before the OUTER_SAMPLE wrappers and restores it in its own `finally`
(comfy/samplers.py:1318-1345), so that what a run hooks in is gone with it; wrappers kept by key on the patcher
(comfy/model_patcher.py:1317); PREDICT_NOISE wrappers run once per evaluation (samplers.py:1211), CALC_COND_BATCH ones
see the prompts that are evaluated (samplers.py:214).
"""

import hashlib
import logging
import math
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, TypeVar
from uuid import UUID

import comfy.model_management
import comfy.model_patcher
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy_execution.utils import get_executing_context
from torch import Tensor

from .chunks import prompts
from .clock import TOLERANCE, clock_of
from .families import Block, network_of, order_of_blocks
from .tell import tell

KEY = "guidekit"
_RUN = "guidekit_run"
_HOOKS, _MODELS, RIDERS = "hooks", "models", "riders"
_PARTS = (_HOOKS, _MODELS, RIDERS)  # what serves a technique, and does not report by itself
_PREFIX = "guidekit_"  # of prompts that techniques give to a guider

log = logging.getLogger(__name__)
Part = TypeVar("Part")
Hook = Callable[["Run", Any], None]


class Run:
    """One sampling run, shared by all Guidekit nodes on the model.

    `began`: by outer step so far, the sigma at which it began. `evaluations`: how many so far, with the current one.
    `evaluated_now`, `evaluated`: the names of the guider's prompts that were asked for in the current evaluation, and
    so far. `acted`: the techniques that have changed something. `notes`: what a technique writes down for its report.
    """

    def __init__(self, guider, sampler, sigmas: Tensor, latent_shapes: list):
        self.model_sampling = guider.model_patcher.get_model_object("model_sampling")
        self._model = guider.model_patcher
        self._guider = guider
        self.sigmas: list[float] = sigmas.tolist()
        self.latent_shapes = [tuple(shape) for shape in latent_shapes]
        self.techniques: dict[str, list] = guider.model_options[KEY]
        self.guests: dict[Any, tuple] = {}  # second models that are ready to predict: guider, its arguments, callback
        self.evaluations = 0
        self.evaluated_now: set[str] = set()
        self.evaluated: set[str] = set()
        self.acted: set = set()
        self.notes: dict[Any, Any] = {}
        self._in_its_place: set[UUID] = set()
        self._parts: dict[type, Any] = {}
        self._at_end: list[Callable[[Run], None]] = []
        self._said: set[str] = set()
        self._memories: dict[Any, StepMemory] = {}
        self._levels: dict[float, float] = {}
        self.began: dict[int, float] = {}
        self.sampler_name = getattr(getattr(sampler, "sampler_function", sampler), "__name__", type(sampler).__name__)
        self.clock = clock_of(self.sampler_name, getattr(sampler, "extra_options", {}), self.sigmas)
        self._tells_steps = False  # the sampler says itself where it is
        self._undone = getattr(sampler, "undoes", False)
        context = get_executing_context()
        self._sampler_node = context and context.node_id

    def of(self, kind: Callable[["Run"], Part]) -> Part:
        """What a subsystem keeps in this run: `kind(run)`, made when it is first asked for."""
        if kind not in self._parts:
            self._parts[kind] = kind(self)
        return self._parts[kind]

    def at_end(self, call: Callable[["Run"], None]) -> None:
        """Calls `call(run)` when the run is over, before anything is reported."""
        self._at_end.append(call)

    @property
    def step(self) -> int:
        """The outer step that the current evaluation belongs to."""
        return self.clock.step

    @property
    def step_sigma(self) -> float:
        """The sigma at which it began."""
        return self.clock.step_sigma

    @property
    def next_sigma(self) -> float:
        """The sigma at which it ends."""
        return self.clock.next_sigma

    def sigma_at(self, percent: float) -> float:
        """The noise level at which `percent`, 0 to 1, of the run lies behind. The table it comes from lies on the
        device, which is asked once."""
        if percent not in self._levels:
            self._levels[percent] = self.model_sampling.percent_to_sigma(percent)
        return self._levels[percent]

    def seed_of_step(self, seed: int) -> int:
        """Another one at each noise level, the same in every evaluation of a step, whichever sampler makes it."""
        return int.from_bytes(hashlib.sha256(f"{seed} {self.step_sigma:.5g}".encode()).digest()[:7], "big")

    @property
    def steps(self) -> int:
        """How many outer steps there are; so far, in a sampler that decides as it goes."""
        return self.clock.steps or self.step + 1

    @property
    def network(self) -> torch.nn.Module:
        return network_of(self._model)

    @cached_property
    def order(self) -> dict[Block, int]:
        """The place of each of the network's blocks in the order in which they run."""
        return order_of_blocks(self.network)

    @cached_property
    def _uuids(self) -> dict[str, set[UUID]]:
        """Of the guider's prompts, by name. Known once the run samples. The host gives a prompt the areas of the
        positive in entries with the same uuid, which are left out of it."""
        found = {name: {entry["uuid"] for entry in entries or ()} for name, entries in self._guider.conds.items()}
        positive = found.get("positive", set())
        return {name: uuids - positive if name != "positive" else uuids for name, uuids in found.items()}

    def is_ours(self, prompt: str) -> bool:
        """Whether a technique has given the guider the prompt of this name."""
        return prompt.startswith(_PREFIX)

    @cached_property
    def _negatives(self) -> tuple[set[UUID], set[UUID]]:
        """Of the guider's negative prompts, however it calls them, and of the others. Known once the run samples."""
        negative, others = set(), set()
        for name, entries in self._guider.conds.items():
            (negative if "negative" in name else others).update(entry["uuid"] for entry in entries)
        return negative, others

    def take_for_negative(self, entries: list[dict]) -> None:
        """What is evaluated in the negative's place counts as a negative prompt of the guider's."""
        self._in_its_place.update(entry["uuid"] for entry in entries)

    def negative_chunks(self, options: dict) -> tuple[bool, ...]:
        """Of each chunk of the current network call, whether it is for a negative prompt of the guider's."""
        negative, others = self._negatives
        # Entries with the areas of the positive have its uuid; these go by their place.
        return tuple(
            uuid in self._in_its_place or uuid in negative and (uuid not in others or place == 1)
            for place, uuid in prompts(options)
        )

    @property
    def latent_format(self):
        return self._model.get_model_object("latent_format")

    def process_latent_out(self, latent: Tensor) -> Tensor:
        """From raw latents, as samplers see them, to those of a VAE."""
        return self._model.model.process_latent_out(latent)

    def reload(self) -> None:
        """Puts the network, and those beside it, back where they work, if something has taken their place."""
        comfy.model_management.load_models_gpu([self._model, *self._model.get_nested_additional_models()])

    @property
    def model_options(self) -> dict:
        """Of this run."""
        return self._guider.model_options

    @property
    def guider(self) -> Any:
        return self._guider

    @property
    def prompts(self) -> dict[str, list[dict]]:
        """The guider's, by name, as the host has prepared them for this run."""
        return self._guider.conds

    @property
    def descending(self) -> bool:
        """False when the schedule goes from clean to noisy, as in inversion."""
        return self.sigmas[0] >= self.sigmas[-1]

    @property
    def scale_is_lambda(self) -> bool:
        """Whether the sampler is one of the host's CFG++ samplers, which take the guider's cfg as CFG++'s lambda."""
        return "cfg_pp" in self.sampler_name

    def enter_step(self, step: int) -> None:
        """For samplers that say themselves where they are: all evaluations from now on are of the step from
        `sigmas[step]` to the next one, in whichever direction."""
        self._tells_steps = True
        self.clock.step, self.clock.step_sigma = step, self.sigmas[step]

    def begin_evaluation(self, sigma: Tensor) -> None:
        self.evaluations += 1
        self.evaluated_now = set()
        if not self._tells_steps:
            self.clock.evaluation(sigma)
        self.began.setdefault(self.step, self.step_sigma)

    def see_prompts(self, conds: list) -> None:
        """The prompts of a call of the host's `calc_cond_batch`."""
        asked = {entry["uuid"] for entries in conds for entry in entries or ()}
        self.evaluated_now |= {name for name, uuids in self._uuids.items() if uuids & asked}
        self.evaluated |= self.evaluated_now

    def memory(self, owner) -> "StepMemory":
        """What `owner` (a technique on this model) remembers between steps.

        Raises:
            ValueError: an inversion, which goes through the steps in reverse, or the way back from it.
        """
        if self._undone:
            raise ValueError(
                f"{owner.label} remembers earlier steps, and an inversion goes through them backwards. Take it off the "
                "model, or set it so that it does not (APG: momentum 0)."
            )
        return self._memories.setdefault(owner, StepMemory(self))

    def all_techniques(self) -> list:
        return list(dict.fromkeys(t for kind, some in self.techniques.items() if kind not in _PARTS for t in some))

    def report(self) -> None:
        """What the techniques have to say of the run, or why they did nothing."""
        for call in self._at_end:
            call(self)
        said = set()
        for technique in self.all_techniques():
            label = f"{technique.label}{self._where}"
            if technique in self.acted:
                if text := getattr(technique, "summary", lambda run: None)(self):
                    tell(technique.node_id, f"{label}: {text}")
            elif getattr(technique, "owner", None) not in self._idle:  # which says it for both
                message = f"{label} had no effect in this run: {self.why_idle(technique)}"
                if message not in said:
                    said.add(message)
                    tell(getattr(technique, "node_id", None), message, logging.WARNING)

    @property
    def _idle(self) -> set:
        return {technique for technique in self.all_techniques() if technique not in self.acted}

    @property
    def _where(self) -> str:
        """The sampler, as a graph may have several."""
        return f" (sampler node {self._sampler_node})" if self._sampler_node else ""

    def why_idle(self, technique: Any) -> str:
        """The reason for which a technique has done nothing in this run, as a sentence."""
        limits = getattr(technique, "range", None)
        if limits is not None and not any(limits.contains(sigma, self) for sigma in self.began.values()):
            return f"none of its {len(self.began)} steps lies in the node's range (start_percent to end_percent)."
        if own := getattr(technique, "why_idle", lambda run: None)(self):
            return own
        if getattr(technique, "needs_negative", False) and not self.has_guided:
            return "no negative prompt was evaluated: cfg is 1, or the guider has none."
        return technique.idle_reason

    @property
    def has_guided(self) -> bool:
        """Whether any other prompt than the positive has been evaluated so far."""
        return any(name != "positive" and not self.is_ours(name) for name in self.evaluated)

    def say(self, message: str) -> None:
        """Logs a message once per run."""
        if message not in self._said:
            self._said.add(message)
            log.info(message)

    def unpack(self, latent: Tensor) -> list[Tensor]:
        """The streams of a latent: one, or several (audio and video) that the host has packed into [B, 1, N]."""
        if len(self.latent_shapes) == 1:
            return [latent]
        return comfy.utils.unpack_latents(latent, self.latent_shapes)

    def pack(self, streams: list[Tensor]) -> Tensor:
        """Inverse of `unpack`."""
        return streams[0] if len(streams) == 1 else comfy.utils.pack_latents(streams)[0]


class StepMemory:
    """One value carried from outer step to outer step.

    Every evaluation of a step reads the value that the previous step left; the first evaluation of a step decides what
    it leaves. Forgotten when sigma turns back.
    """

    def __init__(self, run: Run):
        self._run = run
        self._step: int | None = None
        self._sigma = math.inf
        self._before = self._after = None
        self._written = False

    def read(self) -> Any:
        run = self._run
        if run.step != self._step:
            turned = run.step_sigma > self._sigma * (1 + TOLERANCE) if run.descending else run.step_sigma < self._sigma
            self._before = None if turned else self._after
            self._step, self._sigma, self._written = run.step, run.step_sigma, False
        return self._before

    def write(self, value: Any) -> None:
        if not self._written:
            self._after, self._written = value, True


def current_run(model_options: dict) -> Run:
    """The run that `model_options` (or the `transformer_options` inside it) belongs to."""
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
    """Puts `technique` on a (cloned) model. Its runs get a `Run` from now on."""
    # Lists and dicts of model_options are copied by clone(), so each branch of a graph has its own.
    model.model_options.setdefault(KEY, {}).setdefault(kind, []).append(technique)
    if not model.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY):
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, _sample)


def attach_hook(model: ModelPatcher, hook: Hook) -> None:
    """Calls `hook(run, guider)` when a run of a (cloned) model starts, once however often it is attached. What it puts
    into `guider.model_options` goes around whatever other nodes have put there, and is gone after the run."""
    hooks = model.model_options.setdefault(KEY, {}).setdefault(_HOOKS, [])
    if hook not in hooks:
        hooks.append(hook)


def wrap_run(guider, kind: str, wrapper: Callable, *, outermost: bool) -> None:
    """For hooks: a wrapper around, or inside, those that other nodes have added."""
    wrappers = guider.model_options.setdefault("transformer_options", {}).setdefault("wrappers", {})
    ours, others = {f"{KEY} {wrapper.__module__}": [wrapper]}, wrappers.get(kind, {})
    wrappers[kind] = {**ours, **others} if outermost else {**others, **ours}


def _sample(executor, *args, **kwargs):
    guider = executor.class_obj
    noise, _, sampler, sigmas, _, callback, *rest = args
    latent_shapes = kwargs.get("latent_shapes") or [noise.shape]
    _check_latent(guider, latent_shapes)
    options = guider.model_options
    # The host's guiders do so for every run; one of another pack might not.
    guider.model_options = comfy.model_patcher.create_model_options_clone(options)
    run = Run(guider, sampler, sigmas, latent_shapes)

    def on_step(step: int, *values):
        run.clock.callback(step)
        for each in (callback, *(of_guest for _, _, of_guest in run.guests.values())):
            if each is not None:
                each(step, *values)

    def sample():
        return executor(*args[:5], on_step, *rest, **kwargs)

    try:
        guider.model_options.setdefault("transformer_options", {})[_RUN] = run
        wrap_run(guider, WrappersMP.PREDICT_NOISE, _predict, outermost=True)
        wrap_run(guider, WrappersMP.CALC_COND_BATCH, _calc_cond_batch, outermost=True)
        for hook in run.techniques.get(_HOOKS, ()):
            hook(run, guider)
        for technique in run.all_techniques():
            if begin := getattr(technique, "begin", None):
                begin(run, guider)
        for second in run.techniques.get(_MODELS, ()):
            sample = partial(second.around, run, guider, sample, args, latent_shapes)
        samples = sample()
    finally:
        guider.model_options = options
    run.report()
    _check_finite(samples)
    return samples


def _predict(executor, x: Tensor, timestep: Tensor, *args, **kwargs):
    current_run(executor.class_obj.model_options).begin_evaluation(timestep)
    return executor(x, timestep, *args, **kwargs)


def _calc_cond_batch(executor, model, conds: list, x: Tensor, timestep: Tensor, model_options: dict):
    current_run(model_options).see_prompts(conds)
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
            "Make the latent with an empty-latent node, or encode the picture with this model's VAE."
        )


def _check_finite(samples: Tensor) -> None:
    if not torch.isfinite(samples).all():
        raise ValueError(
            "The sampled latent holds NaN or infinity: a prediction of the model was not finite. Usual causes are a "
            "network in float16 that overflows (start ComfyUI with --force-fp32 or use bfloat16 weights), a damaged "
            "checkpoint or LoRA, or a very large guidance scale."
        )
