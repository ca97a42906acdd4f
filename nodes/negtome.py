"""Negative Token Merging (Singh et al. 2024, arXiv 2412.01339): images of a batch that do not look alike, or that do
not look like a given one."""

from dataclasses import dataclass

import torch
from comfy_api.latest import io
from torch import Tensor

from ..samplers.attention.negtome import MATCHINGS, REFERENCES, negtome, negtome_among
from .host.attention.output import AttentionOutput, change_attention_output
from .host.inputs import checked, fit_latent
from .host.inputs.settings import tell_settings, unused
from .host.inputs.shared import RangedNode, blocks_input, range_inputs
from .host.network.block_selection import choose_blocks, usually_merged
from .host.network.families import family_of
from .host.network.reference_row import NOISE, ReferenceRow, add_reference_row
from .host.run import Run
from .host.run.chunks import Chunk
from .host.run.noise_levels import is_flow
from .host.run.outputs import report_output, with_report
from .host.run.ranges import Range, above
from .presets import TYPED, preset_input, resolve

GIVEN = "reference latent"
STEPS = ["usual", "start to end"]
APPLY_TO = ["both", "positive only"]


@dataclass(frozen=True, eq=False)
class _Steps:
    """The part of the run in which the technique acts."""

    usual: bool
    range: Range

    def __call__(self, run: Run) -> bool:
        if not self.range.active(run):
            return False
        if not self.usual:
            return True
        # The paper's t >= 900 of a flow, where sigma is t / 1000, and t >= 800 of SDXL.
        flow = is_flow(run.model_sampling)
        low = 0.9 if flow else run.sigma_at(0.2)
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
    rider: ReferenceRow | None

    label = "Negative Token Merging (NegToMe)"
    idle_reason = (
        "it never saw the attention of its blocks: another node has replaced it, or the sampler runs the network in a "
        "way of its own."
    )

    def __call__(self, a: AttentionOutput) -> Tensor:
        found = a.run.notes.setdefault(self, set())
        found.add("reached")
        if not self.steps(a.run):
            return a.tokens
        found.add("in range")
        if self.fine_only and not self._fine(a):
            return a.tokens
        if self.rider is None and a.tokens.shape[1] < 2:
            found.add("alone")
            return a.tokens
        mask = self._mask(a.run, a.grid, a.tokens.device)
        pushed = [self._pushed(a, tokens, chunk, mask) for tokens, chunk in zip(a.tokens, a.chunks)]
        return torch.stack(pushed) if len(pushed) > 1 else pushed[0][None]

    def _pushed(self, a: AttentionOutput, tokens: Tensor, chunk: Chunk, mask: Tensor | None) -> Tensor:
        """The changed tokens [rows of the chunk, tokens, channels]."""
        if chunk.copy is not None or chunk.negative and self.positive_only:
            return tokens
        if self.rider is None:
            return negtome_among(tokens, self.reference, self.alpha, self.threshold, mask, self.matching)
        return negtome(tokens, a.riding(self.rider, chunk), self.alpha, self.threshold, mask, self.matching)

    def _fine(self, a: AttentionOutput) -> bool:
        """The paper's layers of a UNet are those of at least 32 x 32 tokens; in small images, of half the latent."""
        side = min(a.run.latent_shapes[0][-2:])
        return min(a.grid[-2:]) >= min(32, side // 2)

    def _mask(self, run: Run, grid: tuple[int, ...], device: torch.device) -> Tensor | None:
        """The mask [tokens], moved to the device once per run."""
        if self.mask is None:
            return None
        known = run.notes.setdefault((self, "masks"), {})
        if (grid, device) not in known:
            small = torch.nn.functional.interpolate(self.mask[:1, None].float(), grid[-2:], mode="nearest")[0, 0]
            known[grid, device] = (small > 0.5).expand(grid).flatten().to(device)
        return known[grid, device]

    @property
    def range(self) -> Range:
        return self.steps.range

    def why_idle(self, run: Run) -> str | None:
        found = run.notes.get(self, ())
        if "alone" in found:
            return (
                "a batch of one image has no other to keep away from. Raise batch_size, or choose the reference "
                "'reference latent' and connect the latent of an earlier image."
            )
        if "in range" in found:
            return "no block of the model has as many tokens as it wants by itself. Name blocks."
        if "reached" in found:
            return "it acts in the first steps, and none of them is in this run. Choose steps 'start to end'."
        return None


class NegToMe(RangedNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidekitNegToMe",
            display_name="Negative Token Merging (NegToMe)",
            category="guidekit/attention",
            description="Makes the images of a batch differ from each other, or from an image you give: in the "
            "first steps every token is pushed away from the token of the reference that it is most like. For models "
            "that draw the same image whatever the seed.",
            search_aliases=[
                "NegToMe",
                "negative token merging",
                "diversity",
                "variety",
                "same image",
                "seed variance",
                "same face",
                "same seed",
            ],
            inputs=[
                io.Model.Input("model", tooltip="A UNet (SD1, SD2, SDXL) or transformer (SD3, Flux, Wan and more)."),
                io.Combo.Input(
                    "reference",
                    options=[*REFERENCES, GIVEN],
                    default=REFERENCES[0],
                    tooltip="What to keep away from: the batch's first image, the one before, all others, or the "
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
                    "apply_to",
                    options=APPLY_TO,
                    default=APPLY_TO[0],
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
                io.Combo.Input(
                    "reference_noise",
                    options=list(NOISE),
                    default=NOISE[0],
                    tooltip="Reference latent: what the model sees of it. clean: the latent as it is, in every step. "
                    "clean, scaled down: as the published SDXL code with its Euler sampler, which divides it by "
                    "sqrt(1 + sigma^2), to next to nothing in the first steps; the same as clean on flow models. "
                    "noised to the step: at the noise level of the step.",
                    advanced=True,
                ),
                *range_inputs(),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="For reference latent: an encoded image. It goes through the model beside the others: in "
                    "the steps in which this node acts, each prediction costs two.",
                ),
                io.Mask.Input(
                    "mask", optional=True, tooltip="The part of the reference to keep away from; not connected, all."
                ),
                preset_input(),
            ],
            outputs=[io.Model.Output(tooltip="The model with NegToMe."), report_output()],
            not_idempotent=True,
        )

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
        apply_to,
        matching,
        reference_noise,
        start_percent,
        end_percent,
        latent=None,
        mask=None,
        preset=TYPED,
    ) -> io.NodeOutput:
        taken, told = resolve(cls, model, preset, alpha=alpha, threshold=threshold)
        alpha, threshold = taken.values()
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
            return with_report(model, report="")
        ignored = {} if reference == GIVEN else {"latent": latent, "reference_noise": reference_noise}
        report = tell_settings(cls, told, unused(cls, f"with reference '{reference}'", **ignored))
        when = _Steps(steps == "usual", Range(start_percent, end_percent))
        positive_only, rider = apply_to == APPLY_TO[1], None
        if reference == GIVEN:
            samples = fit_latent(model, latent["samples"], "latent")
            rider = ReferenceRow(_Merged.label, samples[:1], reference_noise, when, not positive_only)
            add_reference_row(model, rider)
        merged = _Merged(
            reference=reference,
            alpha=alpha,
            threshold=threshold,
            matching=matching,
            mask=mask,
            positive_only=positive_only,
            fine_only=not blocks.strip() and family_of(model).name == "UNet",
            steps=when,
            rider=rider,
        )
        change_attention_output(model, chosen, merged)
        return with_report(model, report=report)
