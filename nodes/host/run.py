"""The state of one sampling run: made when it starts, dropped when it ends, however it ends.

Relies on: CFGGuider.sample clones `model_options` before the OUTER_SAMPLE wrappers and restores it in its own `finally`
(comfy/samplers.py:1318-1345); wrappers kept by key on the patcher (comfy/model_patcher.py:1317); PREDICT_NOISE
wrappers run once per evaluation (samplers.py:1211); samplers call the callback once per outer step, after the first
evaluation of that step (samplers.py:988, k_diffusion/sampling.py).
"""

import logging
import math
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any
from uuid import UUID

import comfy.model_management
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from .families import Block, network_of, order_of_blocks
from .guiders import has_one_scale
from .prefix import Prefix
from .tell import tell

KEY = "guidekit"
_RUN = "guidekit_run"
# Parts of the names of sampler functions whose second evaluation of a step is at the next sigma: Heun's corrector, and
# the midpoint of ancestral steps, which for eta = 1 is that sigma.
_SECOND_AT_NEXT_SIGMA = ("heun", "dpm_2_ancestral", "dpmpp_2s_ancestral")
_TOLERANCE = 1e-4  # relative; schedules pass through float32

log = logging.getLogger(__name__)


class Run:
    """One sampling run, shared by all Guidekit nodes on the model.

    `step` counts outer steps and `step_sigma` is the sigma at which the current one began: both are the same for every
    evaluation of a step, also in samplers that evaluate the model twice or more per step.
    """

    def __init__(self, guider, sampler, sigmas: Tensor, latent_shapes: list):
        self.model_sampling = guider.model_patcher.get_model_object("model_sampling")
        self._model = guider.model_patcher
        self._guider = guider
        self.sigmas: list[float] = sigmas.tolist()
        self.latent_shapes = [tuple(shape) for shape in latent_shapes]
        self.techniques: dict[str, list] = guider.model_options[KEY]
        self.step = 0
        self.step_sigma = self.sigmas[0]
        self.predictions: dict[Any, Tensor] = {}  # of the current evaluation, by branch
        self.branch_uuids: dict[Any, dict[UUID, UUID]] = {}  # by branch, from the uuid of the entry it was made of
        self.guests: dict[
            Any, tuple
        ] = {}  # second models that are ready to predict: guider, its extra arguments, callback
        self.shares_blocks = True  # between cond and branches that equal it up to some block
        self.prefix: Prefix | None = None  # while an evaluation does so
        self.acted: set = set()
        self.notes: dict[Any, Any] = {}  # what a technique writes down for its report
        self._said: set[str] = set()
        self._memories: dict[Any, StepMemory] = {}
        self.sampler_name = getattr(getattr(sampler, "sampler_function", sampler), "__name__", type(sampler).__name__)
        self._undone = getattr(sampler, "undoes", False)
        self._second_at_next_sigma = any(part in self.sampler_name for part in _SECOND_AT_NEXT_SIGMA)
        self._told = False
        self._last_callback = -1
        self._evaluations = 0  # since the last callback
        self._per_step: int | None = None  # evaluations between two callbacks, once seen

    @cached_property
    def order(self) -> dict[Block, int]:
        """The place of each of the network's blocks in the order in which they run."""
        return order_of_blocks(network_of(self._model))

    @cached_property
    def _prompts(self) -> tuple[set[UUID], set[UUID]]:
        """Of the guider's negative prompts, however it calls them, and of the others. Known once the run samples."""
        negative, others = set(), set()
        for name, entries in self._guider.conds.items():
            (negative if "negative" in name else others).update(entry["uuid"] for entry in entries)
        return negative, others

    def negative_chunks(self, options: dict) -> tuple[bool, ...]:
        """Of each chunk of the current network call, whether it is for a negative prompt of the guider's."""
        negative, others = self._prompts
        # The host gives a negative the areas of the positive in entries with the same uuid; these go by their place.
        places = zip(options["cond_or_uncond"], options["uuids"])
        return tuple(uuid in negative and (uuid not in others or place == 1) for place, uuid in places)

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
    def prompts(self) -> dict[str, list[dict]]:
        """The guider's, by name, as the host has prepared them for this run."""
        return self._guider.conds

    @property
    def descending(self) -> bool:
        """False when the schedule goes from clean to noisy, as in inversion."""
        return self.sigmas[0] >= self.sigmas[-1]

    @property
    def next_sigma(self) -> float:
        """The sigma at which the current step ends; 0 after the last one."""
        return self.sigmas[self.step + 1] if self.step + 1 < len(self.sigmas) else 0.0

    @property
    def scale_is_lambda(self) -> bool:
        """Whether the sampler is one of the host's CFG++ samplers, which take the guider's cfg as CFG++'s lambda."""
        return "cfg_pp" in self.sampler_name

    def enter_step(self, step: int) -> None:
        """For samplers that say themselves where they are: all evaluations from now on are of the step from
        `sigmas[step]` to the next one, in whichever direction."""
        self.step, self.step_sigma = step, self.sigmas[step]
        self._told = True

    def begin_evaluation(self, sigma: float) -> None:
        self._evaluations += 1
        self.predictions.clear()
        if self._told:
            return
        step = self._step_of(sigma)
        if step != self.step or self._evaluations == 1 and self._last_callback < 0:
            self.step, self.step_sigma = step, sigma

    def _step_of(self, sigma: float) -> int:
        # After the callback of step i come the remaining evaluations of step i, then the first one of step i + 1.
        on_schedule = self._schedule_index(sigma)
        if self._last_callback < 0:
            # Before the first callback, or in a sampler that never calls it: a lower schedule point is a new step.
            return self.step if self._evaluations == 1 or on_schedule is None else max(self.step, on_schedule)
        if self._per_step is not None:
            finished = self._evaluations >= self._per_step
        else:
            # The first step: an evaluation between schedule points belongs to it; at the next schedule point it is
            # the next step's, unless the sampler has its second stage there.
            finished = on_schedule is not None and not (self._second_at_next_sigma and self._evaluations == 1)
        return self._last_callback + finished

    def _schedule_index(self, sigma: float) -> int | None:
        for i, point in enumerate(self.sigmas):
            if math.isclose(sigma, point, rel_tol=_TOLERANCE):
                return i
        return None

    def end_first_evaluation(self, step: int) -> None:
        """The sampler's callback for outer step `step`."""
        if self._last_callback >= 0 and self._evaluations > 0:
            self._per_step = self._evaluations
        self._last_callback, self._evaluations = step, 0

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
        return list(dict.fromkeys(t for kind in self.techniques.values() for t in kind))

    def report(self) -> None:
        """What the techniques have to say of the run, and, in the log, which of them did nothing."""
        for technique in self.all_techniques():
            if text := getattr(technique, "summary", lambda run: None)(self):
                tell(technique.node_id, f"{technique.label}: {text}")
        idle = [t for t in self.all_techniques() if t not in self.acted]
        for label, reason in dict.fromkeys((t.label, t.idle_reason) for t in idle):
            if self.scale_is_lambda and any(t.label == label for t in _scale_changes(self)):
                reason = f"the sampler {self.sampler_name} takes cfg as CFG++'s lambda. Use one without cfg_pp."
            log.warning("%s had no effect in this run: %s", label, reason)

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
            turned = run.step_sigma > self._sigma * (1 + _TOLERANCE) if run.descending else run.step_sigma < self._sigma
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
        model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, _predict)


def _sample(executor, *args, **kwargs):
    guider = executor.class_obj
    noise, _, sampler, sigmas, _, callback, *rest = args
    latent_shapes = kwargs.get("latent_shapes") or [noise.shape]
    _check_latent(guider, latent_shapes)
    run = Run(guider, sampler, sigmas, latent_shapes)

    def on_step(step: int, *values):
        run.end_first_evaluation(step)
        for each in (callback, *(of_guest for _, _, of_guest in run.guests.values())):
            if each is not None:
                each(step, *values)

    def sample():
        return executor(*args[:5], on_step, *rest, **kwargs)

    for technique in run.all_techniques():
        if begin := getattr(technique, "begin", None):
            begin(run, guider)
    for second in run.techniques.get("models", ()):
        sample = partial(second.around, run, guider, sample, args, latent_shapes)
    options = guider.model_options["transformer_options"]
    options[_RUN] = run
    try:
        samples = sample()
    finally:
        del options[_RUN]
    run.report()
    _check_finite(samples)
    return samples


def _predict(executor, x: Tensor, timestep: Tensor, *args, **kwargs):
    guider = executor.class_obj
    run = current_run(guider.model_options)
    run.begin_evaluation(float(timestep.flatten()[0]))
    saved = guider.cfg
    try:
        for change in _scale_changes(run) if has_one_scale(guider) and not run.scale_is_lambda else ():
            changed = change(run, guider.cfg)
            if changed != guider.cfg:
                run.acted.add(change)
            guider.cfg = changed
        return executor(x, timestep, *args, **kwargs)
    finally:
        guider.cfg = saved


def _scale_changes(run: Run) -> list:
    """Those that set the scale come before those that limit it, so that the order of nodes does not matter."""
    return [*run.techniques.get("set scale", ()), *run.techniques.get("limit scale", ())]


def set_scale(model: ModelPatcher, change: Callable[[Run, float], float]) -> None:
    """Puts `change(run, scale)` in place of the guider's scale in each evaluation."""
    attach(model, "set scale", change)


def limit_scale(model: ModelPatcher, change: Callable[[Run, float], float]) -> None:
    """Brings the scale of each evaluation, whoever has set it, nearer to 1; at 1 the host skips the negative."""
    attach(model, "limit scale", change)


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
