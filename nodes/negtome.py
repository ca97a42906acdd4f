"""Negative Token Merging (Singh et al. 2024, arXiv 2412.01339): pictures of a batch that do not look alike, or that do
not look like a given one."""

from dataclasses import dataclass

import torch
from comfy_api.latest import io
from torch import Tensor

from ..samplers.attention.negtome import MATCHINGS, REFERENCES, negtome, negtome_among
from .host.attention_output import AttentionOutput, change_attention_output
from .host.choice import choose_blocks, usually_merged
from .host.families import family_of
from .host.inputs import checked, fit_latent
from .host.levels import is_flow
from .host.ranges import Range, above, range_inputs, validate_range
from .host.rider import Rider, add_rider
from .host.run import Run
from .host.tell import node_id_of
from .host.weak import blocks_input

GIVEN = "reference latent"
STEPS = ["usual", "start to end"]
HALVES = ["both", "positive only"]


@dataclass(frozen=True, eq=False)
class _Steps:
    """Where the technique acts."""

    usual: bool
    range: Range

    def __call__(self, run: Run) -> bool:
        if not self.range.active(run):
            return False
        if not self.usual:
            return True
        # The papers' t >= 900 of a flow, where sigma is t / 1000, and t >= 800 of SDXL.
        flow = is_flow(run.model_sampling)
        low = 0.9 if flow else run.model_sampling.percent_to_sigma(0.2)
        return not above(low, run.step_sigma)


@dataclass(frozen=True, eq=False)
class _Merged:
    reference: str
    alpha: float
    threshold: float
    matching: str
    mask: Tensor | None
    positive_only: bool
    fine_only: bool
    steps: _Steps
    rider: Rider | None
    node_id: str | None

    label = "Negative Token Merging (NegToMe)"
    idle_reason = "its range holds no step, or another node has replaced the attention of its blocks."

    def __call__(self, a: AttentionOutput) -> Tensor:
        if not self.steps(a.run) or self.fine_only and not self._fine(a):
            return a.tokens
        first = len(a.riders)
        if self.rider is None and a.tokens.shape[1] - first < 2:
            a.run.notes[self] = "alone"
            return a.tokens
        mask = self._mask(a.grid, a.tokens.device)
        chunks = []
        for chunk, negative in zip(a.tokens, a.negative):
            if not (negative and self.positive_only):
                own = self._pushed(chunk[first:], chunk[a.riders.index(self.rider)] if self.rider else None, mask)
                chunk = torch.cat([chunk[:first], own])
            chunks.append(chunk)
        return torch.stack(chunks)

    def _pushed(self, tokens: Tensor, rider: Tensor | None, mask: Tensor | None) -> Tensor:
        settings = (self.alpha, self.threshold, mask, self.matching)
        if rider is None:
            return negtome_among(tokens, self.reference, *settings)
        return negtome(tokens, rider[None], *settings)

    def _fine(self, a: AttentionOutput) -> bool:
        """The paper's layers of a UNet are those of at least 32 x 32 tokens; in small pictures, of half the latent."""
        side = min(a.run.latent_shapes[0][-2:])
        return min(a.grid[-2:]) >= min(32, side // 2)

    def _mask(self, grid: tuple[int, ...], device: torch.device) -> Tensor | None:
        if self.mask is None:
            return None
        small = torch.nn.functional.interpolate(self.mask[:1, None].float(), grid[-2:], mode="nearest")[0, 0]
        return (small > 0.5).expand(grid).flatten().to(device)

    def why_idle(self, run: Run) -> str | None:
        if self not in run.notes:
            return None
        return "a batch of one picture has no other to keep away from. Make it larger, or give a reference latent."


class NegToMe(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidekitNegToMe",
            display_name="Negative Token Merging (NegToMe)",
            category="guidekit/attention",
            description="Makes the pictures of a batch differ from each other, or from a picture you give: in the "
            "first steps every token is pushed away from the token of the reference that it is most like. For models "
            "that draw the same picture whatever the seed.",
            search_aliases=["NegToMe", "negative token merging", "diversity", "variety", "same image", "seed variance"],
            inputs=[
                io.Model.Input("model", tooltip="A UNet (SD1, SD2, SDXL) or transformer (SD3, Flux, Wan and more)."),
                io.Combo.Input(
                    "reference",
                    options=[*REFERENCES, GIVEN],
                    default=REFERENCES[0],
                    tooltip="What to keep away from: the batch's first picture, the one before, all others, or the "
                    "latent connected below.",
                ),
                io.Float.Input(
                    "alpha",
                    default=0.9,
                    min=-1.0,
                    max=3.0,
                    step=0.05,
                    round=0.001,
                    tooltip="How far to push. 0 is off and costs nothing; negative pulls towards the reference.",
                ),
                io.Float.Input(
                    "threshold",
                    default=0.65,
                    min=-1.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    tooltip="Only tokens that are more like the reference than this (cosine) move. The paper uses 0.65 "
                    "for Flux, 0.7 for SDXL.",
                ),
                blocks_input(),
                io.Combo.Input(
                    "steps",
                    options=STEPS,
                    default=STEPS[0],
                    tooltip="usual: the first steps as in the paper, down to t = 800 of eps and v models and 0.9 of "
                    "flows. start to end: as the two inputs say.",
                ),
                io.Combo.Input(
                    "halves",
                    options=HALVES,
                    default=HALVES[0],
                    tooltip="Whether the negative prompt's half of CFG is treated too, with its own reference.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "matching",
                    options=list(MATCHINGS),
                    default=MATCHINGS[0],
                    tooltip="source: the paper's, every token's own best match. official: as the published code has "
                    "it, which takes the index from the other side.",
                    advanced=True,
                ),
                io.Boolean.Input(
                    "renoise",
                    default=False,
                    tooltip="Reference latent: noise it to the level of the step; off, it is clean in every step, as "
                    "in the paper.",
                    advanced=True,
                ),
                *range_inputs(),
                io.Latent.Input("latent", optional=True, tooltip="For reference latent: an encoded picture."),
                io.Mask.Input(
                    "mask", optional=True, tooltip="The part of the reference to keep away from; not connected, all."
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model with NegToMe.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, start_percent, end_percent) -> bool | str:
        return validate_range(start_percent, end_percent)

    @classmethod
    @checked
    def execute(
        cls,
        model,
        reference,
        alpha,
        threshold,
        blocks,
        steps,
        halves,
        matching,
        renoise,
        start_percent,
        end_percent,
        latent=None,
        mask=None,
    ) -> io.NodeOutput:
        model = model.clone()
        chosen = choose_blocks(model, blocks, usually_merged(model))
        if reference == GIVEN and latent is None:
            raise ValueError(
                "The reference is a latent, and none is connected. Connect one, or choose another reference."
            )
        if matching == "official" and reference == "all other images":
            raise ValueError(
                "matching is 'official', which pairs tokens one to one, and the reference is 'all other images'. "
                "Choose the first or the previous image or a latent as reference, or matching 'source'."
            )
        if alpha == 0 or threshold >= 1:
            return io.NodeOutput(model)
        when = _Steps(steps == "usual", Range(start_percent, end_percent))
        rider = None
        if reference == GIVEN:
            rider = Rider(fit_latent(model, latent["samples"], "latent")[:1], renoise, when)
            add_rider(model, rider)
        fine_only = not blocks.strip() and family_of(model).name == "UNet"
        settings = (reference, alpha, threshold, matching, mask, halves == "positive only", fine_only, when, rider)
        change_attention_output(model, chosen, _Merged(*settings, node_id_of(cls)))
        return io.NodeOutput(model)
