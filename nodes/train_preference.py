"""Training a LoRA on likes and dislikes: Diffusion-KTO (Li et al., NeurIPS 2024, arXiv 2404.04465), DiffusionNFT (Zheng
et al., ICLR 2026, arXiv 2509.16117), Diffusion-DPO (Wallace et al., CVPR 2024, arXiv 2311.12908), and plain training
on what is liked."""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import comfy.utils
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from PIL import Image

from ..samplers.preference import kto
from ..samplers.preference.objectives import DPO, KTO, NFT, SFT, Objective
from .host.files import tuned as tuned_files
from .host.files.folders import LORAS
from .host.inputs import checked, fit_votes
from .host.inputs.settings import unused
from .host.inputs.shared import random_seed_input, range_inputs, validate_range
from .host.run.messages import tell
from .host.run.outputs import report_output, with_report
from .host.run.ranges import Range
from .host.training.curve import as_image, draw, with_previews
from .host.training.layers import LAYERS
from .host.training.lora_file import metadata_of, patches_of, read_start, save_lora
from .host.training.previews import of_different_prompts, previews
from .host.training.remarks import remarks
from .host.training.session import Session
from .host.training.state_file import check_state, load_state, save_state
from .host.training.trainer import Point, Settings, Trainer
from .host.votes.digest import model_digest, policy_digest
from .host.votes.vote_set import VoteSet, VotesType

LABEL = "Train Preference LoRA"
# With the beta that each has where none is given, from trials on the demo models (docs/benchmarks/taste.md).
BETAS = {"KTO": 100.0, "DiffusionNFT": 0.1, "DPO": 200.0, "SFT on likes": 0.0}
LIKED, DISLIKED = "what is liked", "what is disliked (for a negative)"
PLAIN, GUIDED = "the model", "the model with guidance"
NONE = "none"
_SAVE_EVERY = 60.0  # seconds
_SHOW_EVERY = 1.0
_PREVIEWS = 3


class TrainPreference(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidekitTrainPreference",
            display_name=LABEL,
            category="guidekit/alignment",
            description="Learns a LoRA from images that were liked and disliked: your taste, on your machine, in "
            "minutes. Saves it in models/loras/guidekit and gives the model with it. An interrupted training goes on "
            "where it stopped when it is queued again.",
            search_aliases=[
                "train",
                "teach",
                "learn from votes",
                "fine-tune",
                "taste",
                "KTO",
                "DPO",
                "NFT",
                "thumbs",
                "preference",
            ],
            inputs=[
                io.Model.Input(
                    "model", tooltip="What is trained; LoRAs that are on it stay on it, and count as its own."
                ),
                VotesType.Input("votes", tooltip="From Load Votes: at least 4 likes and 4 dislikes."),
                io.Combo.Input(
                    "objective",
                    options=list(BETAS),
                    default="DiffusionNFT",
                    tooltip="DiffusionNFT and KTO learn from likes and dislikes, one by one. SFT on likes copies what "
                    "is liked. DPO compares a like and a dislike of one prompt.",
                ),
                io.Combo.Input(
                    "learn",
                    options=[LIKED, DISLIKED],
                    default=LIKED,
                    tooltip="what is disliked: the votes are swapped. Such a LoRA is for the negative: Preference LoRA "
                    "Loader, negative only.",
                ),
                io.Int.Input("steps", default=100, min=1, max=100_000, step=10, tooltip="Of the optimizer."),
                io.Float.Input(
                    "learning_rate",
                    default=1e-3,
                    min=0.0,
                    max=1.0,
                    step=1e-5,
                    round=False,
                    tooltip="Of AdamW. Small networks take 1e-3, large ones 1e-4 and less.",
                ),
                io.String.Input(
                    "name", default="my taste", tooltip="Of the file in models/loras/guidekit; an old one is replaced."
                ),
                io.Float.Input(
                    "beta",
                    default=0.0,
                    min=0.0,
                    max=100_000.0,
                    step=0.1,
                    round=False,
                    tooltip="Of the objective; 0 takes its own: "
                    + ", ".join(f"{name} {beta:g}" for name, beta in BETAS.items() if beta)
                    + ". Smaller moves farther from the model.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "layers",
                    options=list(LAYERS),
                    default=LAYERS[0],
                    tooltip="Which layers get a product. cross-attention (where there is some) changes what words "
                    "mean; all linear learns most.",
                    advanced=True,
                ),
                io.Int.Input("rank", default=8, min=1, max=1024, step=1, tooltip="Of the products.", advanced=True),
                io.Int.Input(
                    "images_per_step",
                    default=8,
                    min=1,
                    max=512,
                    step=1,
                    tooltip="Votes whose gradients are added up for a step. Memory does not grow with it.",
                    advanced=True,
                ),
                io.Int.Input(
                    "images_at_once",
                    default=1,
                    min=1,
                    max=512,
                    step=1,
                    tooltip="How many of them go through the network together: faster, with more memory.",
                    advanced=True,
                ),
                io.Float.Input(
                    "liked_share",
                    default=0.5,
                    min=0.05,
                    max=0.95,
                    step=0.05,
                    round=0.001,
                    tooltip="Share of likes among the images of a step, however many there are of each.",
                    advanced=True,
                ),
                io.Float.Input(
                    "without_prompt",
                    default=0.1,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.001,
                    tooltip="Share of images that are shown with an empty prompt, so that the taste is learned for all "
                    "prompts. Needs Load Votes to know the empty prompt (connect its CLIP).",
                    advanced=True,
                ),
                io.Int.Input(
                    "warm_up", default=10, min=0, max=10_000, step=1, tooltip="Steps of rising rate.", advanced=True
                ),
                io.Float.Input(
                    "clip",
                    default=1.0,
                    min=0.0,
                    max=1e6,
                    step=0.1,
                    round=False,
                    tooltip="Longest gradient; 0 is no limit.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "noise_levels",
                    options=["uniform", "middle"],
                    default="uniform",
                    tooltip="Where in the noise schedule is trained. middle: mostly where flow models are trained.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "reference_point",
                    options=list(kto.REFERENCE_POINTS),
                    default=kto.REFERENCE_POINTS[0],
                    tooltip="KTO: from which gain on an image counts as good. mean: of the step's images, as in the "
                    "authors' code.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "images_are_of",
                    options=[PLAIN, GUIDED],
                    default=PLAIN,
                    tooltip="What the voted images are taken to be samples of. With guidance: what cfg did to them is "
                    "taken out of what is learned; one more evaluation for each image.",
                    advanced=True,
                ),
                io.Float.Input(
                    "votes_on_others",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.001,
                    tooltip="Weight of votes on images that another model or LoRA made than the one that is trained: 1 "
                    "is full, 0 leaves them out.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "go_on_from",
                    options=[NONE, *tuned_files.names()],
                    default=NONE,
                    tooltip="A LoRA to begin with, which made the images: the next round. The result takes its place.",
                    advanced=True,
                ),
                io.Boolean.Input(
                    "resume",
                    default=True,
                    tooltip="Goes on with an interrupted training of this name, settings and votes.",
                    advanced=True,
                ),
                io.Boolean.Input(
                    "checkpointing",
                    default=True,
                    tooltip="Less memory for one more evaluation. Off is faster on small networks.",
                    advanced=True,
                ),
                io.Int.Input(
                    "preview_every",
                    default=0,
                    min=0,
                    max=100_000,
                    step=5,
                    tooltip="Steps between rough images of fixed seeds in the node; 0 is none.",
                    advanced=True,
                ),
                random_seed_input("Of the first weights, the order of votes, their noise and noise levels."),
                *range_inputs(),
            ],
            outputs=[
                io.Model.Output(tooltip="The model with the LoRA at strength 1."),
                io.AnyType.Output(display_name="file", tooltip="For the input of a LoRA loader."),
                io.Image.Output(display_name="curve", tooltip="The course of the training."),
                report_output("What was learned from what, and warnings."),
            ],
            is_output_node=True,
            not_idempotent=True,
        )

    @classmethod
    def fingerprint_inputs(cls, go_on_from=None, **_) -> float | None:
        """A LoRA that was written anew is another input."""
        return tuned_files.modified(go_on_from) if go_on_from not in (None, NONE) else None

    @classmethod
    def validate_inputs(cls, start_percent, end_percent) -> bool | str:
        return validate_range(start_percent, end_percent)

    @classmethod
    @checked
    def execute(
        cls,
        model,
        votes,
        objective,
        learn,
        steps,
        learning_rate,
        name,
        beta,
        layers,
        rank,
        images_per_step,
        images_at_once,
        liked_share,
        without_prompt,
        warm_up,
        clip,
        noise_levels,
        reference_point,
        images_are_of,
        votes_on_others,
        go_on_from,
        resume,
        checkpointing,
        preview_every,
        random_seed,
        start_percent,
        end_percent,
    ) -> io.NodeOutput:
        file = LORAS.check(name)
        check_state(file)
        limits = Range(start_percent, end_percent)
        of_objective = {} if objective == "KTO" else {"reference_point": reference_point}
        if objective == "SFT on likes":
            of_objective |= {"beta": beta, "liked_share": liked_share}
        ignored = unused(cls, f"by {objective}", **of_objective)
        votes = _swapped(votes) if learn == DISLIKED else votes
        start = None if go_on_from == NONE else read_start(model, tuned_files.path_of(go_on_from))
        made_by = model if start is None else _with(model, start)
        policy = policy_digest(made_by)
        votes, chosen = _chosen(votes, objective, policy, votes_on_others)
        votes = dataclasses.replace(votes, rows=fit_votes(model, votes.rows), held_out=fit_votes(model, votes.held_out))
        settings = Settings(
            objective=_objective(objective, beta or BETAS[objective], reference_point),
            layers=layers,
            rank=rank,
            steps=steps,
            window=images_per_step,
            batch=images_at_once,
            rate=learning_rate,
            warm_up=warm_up,
            clip=clip,
            liked_share=liked_share,
            dropout=without_prompt,
            levels=noise_levels,
            first_level=1 - limits.end_percent,
            last_level=1 - limits.start_percent,
            guided=images_are_of == GUIDED,
            old_weight=votes_on_others,
            checkpointing=checkpointing,
            seed=random_seed,
        )
        trainer = Trainer(model, votes, settings, start, policy)
        state = load_state(file, trainer) if resume else None
        if state is not None and state.step <= steps:
            trainer.restore(state)
        show = _Show(file, steps, preview_every, of_different_prompts(votes.rows, _PREVIEWS))
        begun = trainer.step
        try:
            trainer.run(show)
        except FloatingPointError as error:
            raise ValueError(
                f"{error} Lower learning_rate, or raise beta. What was learned until then is kept."
            ) from error
        finally:
            if trainer.step > begun:
                save_state(file, trainer)
        factors = trainer.adapters.factors()
        sentence = f"{objective} on {votes.liked} likes and {votes.disliked} dislikes, {trainer.step} steps"
        numbers = {
            "learning_rate": learning_rate,
            "optimizer": "AdamW",
            "steps": trainer.step,
            "max_train_steps": steps,
            "batch_size_per_device": images_per_step,
            "seed": random_seed,
            "lr_warmup_steps": warm_up,
            "max_grad_norm": clip,
            "checkpointing": checkpointing,
            "session_id": votes.digest,
        }
        about = {
            **settings.describe(),
            "learned": learn,
            "liked": votes.liked,
            "disliked": votes.disliked,
            "held_out": len(votes.held_out),
            "votes": votes.digest,
            "model": model_digest(model),
            "policy": policy,
            "began with": go_on_from,
            "steps": trainer.step,
        }
        title = file.removesuffix(".safetensors")
        file = save_lora(
            file, factors, about, metadata_of(model, votes, title, sentence, trainer.adapters.rank, numbers)
        )
        gone_on = f"It went on from step {begun}." if begun else ""
        if state is not None and state.step > steps:
            gone_on = f"It began anew, because the training that was kept has {state.step} steps already."
        said = [f"{file}: {sentence}.", gone_on, *chosen, *remarks(trainer), ignored]
        report = tell(LABEL, "\n".join(filter(None, said)))
        return with_report(_with(model, factors), file, as_image(draw(trainer.curve, steps)), report=report)


def _objective(name: str, beta: float, reference_point: str) -> Objective:
    kinds: dict[str, Objective] = {
        "KTO": KTO(beta, reference_point),
        "DiffusionNFT": NFT(beta),
        "DPO": DPO(beta),
        "SFT on likes": SFT(),
    }
    return kinds[name]


def _with(model: ModelPatcher, factors: dict) -> ModelPatcher:
    changed = model.clone()
    changed.add_patches(patches_of(factors), 1.0)
    return changed


def _swapped(votes: VoteSet) -> VoteSet:
    rows, held_out = (
        tuple(dataclasses.replace(row, label=-row.label) for row in rows) for rows in (votes.rows, votes.held_out)
    )
    return dataclasses.replace(votes, rows=rows, held_out=held_out, digest=f"swapped {votes.digest}")


def _chosen(votes: VoteSet, objective: str, policy: str, of_others: float) -> tuple[VoteSet, list[str]]:
    """The votes that an objective can use, and what is to be said of them.

    Raises:
        ValueError: there are too few.
    """
    said = []
    others = [row for row in votes.rows if row.policy not in ("", policy)]
    if others:
        left_out = "are left out" if of_others == 0 else f"count {of_others:g}"
        said.append(
            f"{len(others)} votes are on images of another model or LoRA than the one trained; they {left_out}."
        )
        if of_others == 0:
            rows, held_out = (
                tuple(row for row in rows if row.policy in ("", policy)) for rows in (votes.rows, votes.held_out)
            )
            votes = dataclasses.replace(votes, rows=rows, held_out=held_out)
    try:
        votes.check()
    except ValueError as error:
        raise ValueError(" ".join([*said, str(error)])) from error
    if objective == "DPO":
        pairs = len({row.pair for row in votes.rows if row.pair is not None})
        if not pairs:
            raise ValueError(
                "DPO compares a like and a dislike of one prompt, and no prompt has both. Vote on several images of "
                "each prompt, or choose KTO."
            )
        said.append(f"{pairs} pairs.")
    return votes, said


@dataclass
class _Show:
    """Shows the course in the node, and keeps the state."""

    file: str
    steps: int
    preview_every: int
    rows: Sequence
    bar: comfy.utils.ProgressBar = field(init=False)
    begun: float = field(default_factory=time.monotonic)
    first: int | None = None
    saved: float = field(default_factory=time.monotonic)
    shown: float = 0.0
    images: list[Image.Image] = field(default_factory=list)

    def __post_init__(self):
        self.bar = comfy.utils.ProgressBar(self.steps)

    def __call__(self, trainer: Trainer, session: Session, point: Point) -> None:
        now = time.monotonic()
        self.first = point.step - 1 if self.first is None else self.first
        preview = None
        if self.preview_every and point.step % self.preview_every == 0:
            self.images, self.shown = previews(session, self.rows), 0.0
        if now - self.shown > _SHOW_EVERY or point.step == self.steps:
            left = (now - self.begun) / (point.step - self.first) * (self.steps - point.step)
            curve = draw(trainer.curve, self.steps, f"step {point.step}, {_spoken(left)} left")
            image = with_previews(curve, self.images)
            preview, self.shown = ("JPEG", image, max(image.size)), now
        self.bar.update_absolute(point.step, self.steps, preview)
        if now - self.saved > _SAVE_EVERY:
            save_state(self.file, trainer)
            self.saved = now


def _spoken(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds > 90 else f"{seconds:.0f} seconds"
