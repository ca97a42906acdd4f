"""The state of one sampling run. attach.py creates it when the run starts and drops it when the run ends."""

import hashlib
from collections.abc import Callable
from typing import Any, TypeVar

import comfy.model_management
import comfy.utils
from comfy.model_patcher import ModelPatcher
from comfy_execution.utils import get_executing_context
from torch import Tensor

from .clock import clock_of
from .memory import StepMemory
from .prompts import Prompts

Subsystem = TypeVar("Subsystem")


class Run:
    """One sampling run, shared by all Guidekit nodes on the model.

    `began`: the sigma at which each outer step so far began. `evaluations`: their number so far, the current one
    included. `techniques`: by kind. `acted`: the techniques that have changed something. `notes`: data that techniques
    keep for the rest of the run. `remarks`: sentences for the report of a technique. `prompts`: the guider's.
    `step_callbacks`: called with the arguments of the sampler's own callback, after each step. `context`: the host's
    current execution, None outside a graph.
    """

    def __init__(
        self,
        guider,
        sampler,
        sigmas: Tensor,
        latent_shapes: list,
        techniques: dict[str, list],
        nodes: dict[Any, str | None],
    ):
        self.model: ModelPatcher = guider.model_patcher
        self.guider = guider
        self.prompts = Prompts(guider)
        self.model_sampling = self.model.get_model_object("model_sampling")
        self.sigmas: list[float] = sigmas.tolist()
        self.latent_shapes = [tuple(shape) for shape in latent_shapes]
        self.techniques = techniques
        self.evaluations = 0
        self.acted: set = set()
        self.notes: dict[Any, Any] = {}
        self.step_callbacks: list[Callable[..., None]] = []
        self._subsystems: dict[Callable[[Run], Any], Any] = {}
        self._at_end: list[Callable[[Run], None]] = []
        self.remarks: dict[Any, list[str]] = {}
        self._nodes = nodes
        self._memories: dict[Any, StepMemory] = {}
        self._levels: dict[float, float] = {}
        self.began: dict[int, float] = {}
        self.sampler_name = getattr(getattr(sampler, "sampler_function", sampler), "__name__", type(sampler).__name__)
        self.clock = clock_of(self.sampler_name, getattr(sampler, "extra_options", {}), self.sigmas)
        self._tells_steps = False  # the sampler itself calls `enter_step`
        self._undone = getattr(sampler, "undoes", False)
        self.context = get_executing_context()

    def of(self, kind: Callable[["Run"], Subsystem]) -> Subsystem:
        """The state of a subsystem in this run: `kind(run)`, created on first use."""
        if kind not in self._subsystems:
            self._subsystems[kind] = kind(self)
        return self._subsystems[kind]

    def at_end(self, call: Callable[["Run"], None]) -> None:
        """Calls `call(run)` when the run is over, before the report."""
        self._at_end.append(call)

    def end(self) -> None:
        """Calls the functions given to `at_end`."""
        for call in self._at_end:
            call(self)

    @property
    def step(self) -> int:
        """The outer step that the current evaluation belongs to."""
        return self.clock.step

    @property
    def step_sigma(self) -> float:
        """The sigma at which the current outer step began."""
        return self.clock.step_sigma

    @property
    def next_sigma(self) -> float:
        """The sigma at which the current outer step ends."""
        return self.clock.next_sigma

    def sigma_at(self, percent: float) -> float:
        """The noise level at `percent`, 0 to 1, of the run. The host's table lies on the device, so each value is read
        once."""
        if percent not in self._levels:
            self._levels[percent] = self.model_sampling.percent_to_sigma(percent)
        return self._levels[percent]

    def seed_of_step(self, seed: int) -> int:
        """A seed that differs between noise levels and is the same in every evaluation of a step, for any sampler."""
        return int.from_bytes(hashlib.sha256(f"{seed} {self.step_sigma:.5g}".encode()).digest()[:7], "big")

    @property
    def steps(self) -> int:
        """The number of outer steps; in a sampler that decides while sampling, those so far."""
        return self.clock.steps or self.step + 1

    @property
    def why_unknown_steps(self) -> str | None:
        """Why `steps` is not known before they are made, as the end of a sentence; None where it is."""
        if self.clock.steps is not None:
            return None
        name = self.sampler_name.removeprefix("sample_").removesuffix("_function")
        return f"{name} decides while sampling how many steps there are."

    @property
    def latent_format(self):
        return self.model.get_model_object("latent_format")

    def process_latent_out(self, latent: Tensor) -> Tensor:
        """Latents [B, C, ...] in the sampler's scale to those that a VAE decodes."""
        return self.model.model.process_latent_out(latent)

    def reload(self) -> None:
        """Loads the network, and those loaded beside it, again, where another model has displaced them."""
        comfy.model_management.load_models_gpu([self.model, *self.model.get_nested_additional_models()])

    @property
    def model_options(self) -> dict:
        """The guider's model options in this run."""
        return self.guider.model_options

    @property
    def descending(self) -> bool:
        """False when the schedule goes from clean to noisy, as in inversion."""
        return self.sigmas[0] >= self.sigmas[-1]

    @property
    def scale_is_lambda(self) -> bool:
        """Whether the sampler is one of the host's CFG++ samplers, which use the guider's cfg as CFG++'s lambda."""
        return "cfg_pp" in self.sampler_name

    def enter_step(self, step: int) -> None:
        """For samplers that set the step themselves: all evaluations from now on belong to the step between
        `sigmas[step]` and the next level, in either direction."""
        self._tells_steps = True
        self.clock.step, self.clock.step_sigma = step, self.sigmas[step]

    def begin_evaluation(self, sigma: Tensor) -> None:
        """Counts an evaluation at `sigma`, [B], before it is made."""
        self.evaluations += 1
        self.prompts.begin_evaluation()
        if not self._tells_steps:
            self.clock.evaluation(sigma)
        self.began.setdefault(self.step, self.step_sigma)

    def memory(self, owner) -> StepMemory:
        """The memory of `owner` (a technique on this model) between steps.

        Raises:
            ValueError: the run is an exact inversion, which goes through the steps in reverse, or samples from one.
        """
        if self._undone:
            raise ValueError(
                f"{owner.label} remembers earlier steps, and an inversion goes through them backwards. Take it off the "
                "model, or set it so that it does not (APG: momentum 0)."
            )
        return self._memories.setdefault(owner, StepMemory(self))

    def remark(self, technique: Any, sentence: str) -> None:
        """Adds a sentence, once, to the report of a technique, which is shown if the technique has acted."""
        remarks = self.remarks.setdefault(technique, [])
        if sentence not in remarks:
            remarks.append(sentence)

    def node_of(self, technique: Any) -> str | None:
        """The id of the node that put `technique` on the model."""
        return self._nodes.get(technique)

    def unpack(self, latent: Tensor) -> list[Tensor]:
        """The streams of a latent: one [B, C, ...], or several (audio, video) that the host packed into [B, 1, N]."""
        if len(self.latent_shapes) == 1:
            return [latent]
        return comfy.utils.unpack_latents(latent, self.latent_shapes)

    def pack(self, streams: list[Tensor]) -> Tensor:
        """Inverse of `unpack`."""
        return streams[0] if len(streams) == 1 else comfy.utils.pack_latents(streams)[0]
