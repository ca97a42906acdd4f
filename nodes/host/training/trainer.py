"""A training: steps of an optimizer on windows of votes, which can be interrupted and gone on with.

What a step does is a function of the weights, the optimizer's moments, the seed and the step's number. With these four
a training goes on to the bit as if it had not been interrupted.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....samplers.preference.objectives import DPO, SFT, Objective
from ....samplers.preference.replay import Seen, accumulate
from ....samplers.preference.window import Levels, Plan, warm_up
from ..models.second_model import is_dynamic, separated
from ..run import techniques_of
from ..votes.vote_set import VoteRow, VoteSet
from .adapters import Adapters, Factors
from .checkpointing import add_checkpointing
from .in_place import InPlace
from .layers import layers_of
from .score import accuracy, errors
from .session import Session, in_session
from .step import Images, Tuning
from .team import Gradients, Team

MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # of torch.optim.AdamW


@dataclass(frozen=True)
class Settings:
    """`window`: images of a step; `batch`: how many of them go through the network at once; `liked_share`: of a window;
    `old_weight`: of votes on images of other LoRAs than the one that this training starts from."""

    objective: Objective
    layers: str = "attention"
    rank: int = 8
    steps: int = 100
    window: int = 8
    batch: int = 1
    rate: float = 1e-3
    warm_up: int = 10
    clip: float = 1.0
    liked_share: float = 0.5
    dropout: float = 0.1
    levels: Levels = "uniform"
    first_level: float = 0.0
    last_level: float = 1.0
    guided: bool = False
    old_weight: float = 1.0
    checkpointing: bool = False
    seed: int = 0
    look_every: int = 10  # steps between looks at the votes that are held out

    def describe(self) -> dict:
        """What a training that goes on must have had before; not how long it is, nor what does not change its steps."""
        found = asdict(self)
        for name in ("steps", "checkpointing", "look_every"):
            del found[name]
        return {**found, "objective": type(self.objective).__name__, **asdict(self.objective)}


@dataclass(frozen=True)
class Point:
    """Of the curve: a step's loss, mean gains of its likes and dislikes and how far from saturated the objective is
    (NaN where they are unknown); of the votes that are held out, what share of pairs is in the right order, and the
    mean gains."""

    step: int
    loss: float
    liked: float
    disliked: float
    steepness: float
    right: float = math.nan
    held_liked: float = math.nan
    held_disliked: float = math.nan


@dataclass(eq=False)
class State:
    """Of a training, between two steps. `moments`: of the optimizer, in the order of the parameters."""

    step: int
    factors: dict[str, Factors]
    moments: list[dict[str, Tensor]]
    curve: list[Point]


Look = Callable[["Trainer", Session, Point], None]


@dataclass(eq=False)
class Trainer:
    """Trains on `votes`. `start`: factors that it begins with, which are its reference then; `policy`: the digest of
    the LoRA that made the images which count fully."""

    model: ModelPatcher
    votes: VoteSet
    settings: Settings
    start: Mapping[str, Factors] | None = None
    policy: str = ""
    team: Team = field(default_factory=Team)

    @torch.inference_mode(False)
    def __post_init__(self):
        settings = self.settings
        self.model = trainable(self.model)
        layers = layers_of(self.model, settings.layers) if self.start is None else _same_layers(self.model, self.start)
        rank = settings.rank if self.start is None else next(iter(self.start.values()))[1].shape[0]
        self.adapters = Adapters(layers, rank, settings.seed, self.start)
        device = comfy.model_management.get_torch_device()
        for product in self.adapters.products.values():
            product.to(device)
        self.in_place = InPlace()
        self.optimizer = torch.optim.AdamW(self.adapters.parameters(), lr=settings.rate, weight_decay=0.0)
        self.plan = self._plan()
        self.step, self.curve = 0, []
        weights = [1.0 if row.policy in ("", self.policy) else settings.old_weight for row in self.votes.rows]
        self.images = Images(self.votes.rows, self.votes.empty, weights, settings.batch, settings.guided)

    @property
    def checkpointing(self) -> bool:
        """Nodes of this pack act inside a network call, and a block that is run again for its gradient is outside."""
        return self.settings.checkpointing and not techniques_of(self.model.model_options)

    def _plan(self) -> Plan:
        settings, votes = self.settings, self.votes
        pairs = pairs_of(votes.rows) if isinstance(settings.objective, DPO) else ()
        likes, dislikes = ([i for i, row in enumerate(votes.rows) if (row.label > 0) == kind] for kind in (True, False))
        return Plan(
            settings.seed,
            settings.window,
            likes,
            () if isinstance(settings.objective, SFT) else dislikes,
            pairs,
            settings.liked_share,
            settings.dropout if votes.empty is not None else 0.0,
            settings.levels,
            settings.first_level,
            settings.last_level,
        )

    def run(self, look: Look | None = None) -> None:
        """Until all steps are done. `look` sees every one of them."""
        votes = [*self.votes.rows, *self.votes.held_out]
        example = votes[0]
        with torch.inference_mode(False), _training(), self.adapters.on(self.model) as model:
            if self.checkpointing:
                add_checkpointing(model)
            shape = (self.settings.batch, *example.latent.shape[1:])
            in_session(model, example.positive, shape, lambda session: self._steps(session, look))

    def _steps(self, session: Session, look: Look | None) -> None:
        before = None  # errors of the reference, for the votes that are held out
        while self.step < self.settings.steps:
            comfy.model_management.throw_exception_if_processing_interrupted()
            point = self._point(self.take_step(session))
            last = self.step == self.settings.steps
            if self.votes.held_out and (last or self.step % self.settings.look_every == 0):
                tuning, rows, batch = Tuning(session, self.adapters), self.votes.held_out, self.settings.batch
                before = errors(session, rows, tuning.reference, batch) if before is None else before
                point = _with_held_out(point, rows, before - errors(session, rows, tuning.tuned, batch))
            self.curve.append(point)
            if look is not None:
                look(self, session, point)

    def take_step(self, session: Session) -> Seen:
        """One step of the optimizer. Raises FloatingPointError, with all as it was, where a number is none any more."""
        settings, parameters = self.settings, self.adapters.parameters()
        self.optimizer.zero_grad(set_to_none=True)
        window, tuning = self.plan.window(self.step), Tuning(session, self.adapters, self.in_place)
        groups, gradients = self.team.mine(self.images.groups(session, window)), Gradients(parameters)
        with torch.enable_grad():
            parts = [self.images.part(tuning, window, places) for places in groups]
            seen = accumulate(settings.objective, tuning, parts, len(window), self.team.exchange, gradients.collect)
        gradients.give(self.team)
        size = torch.nn.utils.clip_grad_norm_(parameters, settings.clip or math.inf)
        if not torch.isfinite(size):
            raise FloatingPointError(f"In step {self.step + 1} the gradient is {size.item()}.")
        for group in self.optimizer.param_groups:
            group["lr"] = settings.rate * warm_up(self.step, settings.warm_up)
        self.optimizer.step()
        self.step += 1
        return seen

    def _point(self, seen: Seen) -> Point:
        steepness = getattr(self.settings.objective, "steepness", None)
        return Point(
            self.step,
            seen.loss.mean().item(),
            _mean(seen.gain[seen.liked]),
            _mean(seen.gain[~seen.liked]),
            math.nan if steepness is None else steepness(seen.gain, seen.liked),
        )

    # What is kept

    def state(self) -> State:
        """On the processor."""
        held = self.optimizer.state
        moments = [
            {name: held[p][name].detach().cpu().clone() for name in MOMENTS} if p in held else {}
            for p in self.adapters.parameters()
        ]
        return State(self.step, self.adapters.factors(), moments, list(self.curve))

    @torch.inference_mode(False)
    def restore(self, state: State) -> None:
        for path, (up, down) in state.factors.items():
            product = self.adapters.products[path]
            product.up.data.copy_(up)
            product.down.data.copy_(down)
        parameters = self.adapters.parameters()
        whole = self.optimizer.state_dict()
        # Clones: what was read while a node executes cannot be changed afterwards (torch's inference mode).
        moments = [{name: tensor.clone() for name, tensor in kept.items()} for kept in state.moments]
        whole["state"] = {i: kept for i, kept in enumerate(moments) if kept}
        self.optimizer.load_state_dict(whole)
        for p in parameters:
            if "step" in self.optimizer.state.get(p, {}):  # load_state_dict casts it to the parameter's type
                self.optimizer.state[p]["step"] = self.optimizer.state[p]["step"].float().cpu()
        self.step, self.curve = state.step, list(state.curve)


def pairs_of(rows: Sequence[VoteRow]) -> list[tuple[int, int]]:
    """(liked, disliked), by their places."""
    found: dict[int, dict[bool, int]] = {}
    for i, row in enumerate(rows):
        if row.pair is not None:
            found.setdefault(row.pair, {})[row.label > 0] = i
    return [(pair[True], pair[False]) for pair in found.values() if len(pair) == 2]


def trainable(model: ModelPatcher) -> ModelPatcher:
    """A model through whose weights gradients go. A node makes weights without that (torch.inference_mode), and on a
    processor they are used as they are: a copy of them is taken then, as the host's own trainer does. With dynamic VRAM
    a layer's weights may be gone from where a gradient looks for them, so a copy without it is taken."""
    with torch.inference_mode(False):
        alone = not is_dynamic(model) and not any(weight.is_inference() for weight in model.model.parameters())
        model = model.clone() if alone else separated(model)
        model.model.requires_grad_(False)
    if model.model_dtype() == torch.float16 and model.model.manual_cast_dtype is None:  # its range is too small
        there = comfy.model_management.should_use_bf16(model.load_device)
        model.set_model_compute_dtype(torch.bfloat16 if there else torch.float32)
    return model


def _same_layers(model: ModelPatcher, start: Mapping[str, Factors]) -> dict:
    everything = layers_of(model, "all linear")
    unknown = [path for path in start if path not in everything]
    if unknown:
        raise ValueError(
            f"The LoRA to go on from has a product for {unknown[0]}, which is no linear layer of "
            f"{type(model.model).__name__}. Give one that was trained on this model."
        )
    return {path: everything[path] for path in start}


@contextmanager
def _training() -> Iterator[None]:
    """The host's switches. Its fused kernels have no gradient. Streams that bring weights to the card keep them in one
    place, one layer's after the other's; gradients need each where it was. A network that was compiled was compiled
    without products."""
    management = comfy.model_management
    before = management.in_training, management.NUM_STREAMS
    management.in_training, management.NUM_STREAMS = True, 0
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        management.in_training, management.NUM_STREAMS = before


def _mean(values: Tensor) -> float:
    return values.mean().item() if len(values) else math.nan


def _with_held_out(point: Point, rows: Sequence[VoteRow], gains: Tensor) -> Point:
    liked = torch.tensor([row.label > 0 for row in rows])
    right = accuracy(gains, liked)
    return replace(point, right=right, held_liked=_mean(gains[liked]), held_disliked=_mean(gains[~liked]))
