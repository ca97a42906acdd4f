"""StyleAligned (Hertz et al., CVPR 2024, arXiv 2312.02133) and reference attention: images in one style, by attention
that they share with one of them, or with an image that is given."""

from dataclasses import dataclass

import torch
from comfy_api.latest import io
from torch import Tensor

from ..samplers.attention.style_aligned import adain, fused, share_bias
from .host.attention.calls import FIRST, Further, SelfAttention, as_cut
from .host.attention.self_attention import replace_self_attention
from .host.inputs import checked, fit_latent
from .host.inputs.settings import tell_settings, unused
from .host.inputs.shared import RangedNode, blocks_input, range_inputs
from .host.inversion.latent_state import KEY
from .host.inversion.trajectory import Trajectory
from .host.network.block_selection import choose_blocks
from .host.network.families import family_of, self_attention_blocks
from .host.network.reference_row import NOISY, RecordedRow, ReferenceRow, add_reference_row
from .host.run import Run
from .host.run.outputs import report_output, with_report
from .host.run.ranges import Range
from .presets import TYPED, preset_input, resolve

LABEL = "StyleAligned"
FIRST_IMAGE, GIVEN = "first image", "reference latent"
REFERENCES = [FIRST_IMAGE, GIVEN]
APPLY_TO = ["both", "positive only"]
_MOST = 8  # references at once
_EXPERIMENTAL = (
    "experimental on this model: the paper's are UNets, and in transformers keys contain positions, so that some of "
    "the reference's layout is copied."
)


@dataclass(frozen=True, eq=False)
class _Shared:
    strength: float
    share: float
    adain: bool
    mask: Tensor | None
    positive_only: bool
    range: Range
    riders: tuple[ReferenceRow, ...]

    label = LABEL
    idle_reason = (
        "it never saw the attention of its blocks: another node has replaced it, or the sampler runs the network in a "
        "way of its own."
    )

    def active(self, run: Run) -> bool:
        return self.range.active(run) and not self._alone(run)

    def _alone(self, run: Run) -> bool:
        return not self.riders and run.latent_shapes[0][0] < 2

    def why_idle(self, run: Run) -> str | None:
        if self._alone(run):
            return (
                "a batch of one image has no other to follow. Raise batch_size, or choose the reference 'reference "
                "latent' and connect the latent of an earlier image."
            )
        return None

    def __call__(self, a: SelfAttention) -> Tensor:
        k, v = (as_cut(t, len(a.q)) for t in (a.k, a.v))
        sources = self._sources(a)
        if not sources:
            return a.attend(a.q, k, v)
        visible = self._visible(a)
        shared = [self._with(a, k, v, source, visible) for source in sources]
        if self.strength == 1 and len(shared) == 1:
            parts = [slice(0, a.image.start), slice(a.image.stop, a.q.shape[2])]
            before, after = (a.attend(a.q, k, v, p) if p.start < p.stop else shared[0][:, :, :0] for p in parts)
            return torch.cat([before, shared[0], after], 2)
        out = a.attend(a.q, k, v)
        image = fused(out[:, :, a.image], shared, self.strength)
        return torch.cat([out[:, :, : a.image.start], image, out[:, :, a.image.stop :]], 2)

    def _sources(self, a: SelfAttention) -> list[Tensor]:
        """For each reference, and each row, the row that it follows, itself where it follows none; only references that
        some row follows. The same in all layers of a network call, and on the device."""
        known = a.run.notes.setdefault((self, "sources"), {})
        key = (len(a.q), a.q.device, *((c.number, c.negative, c.copy and (c.copy.rider, c.copy.of)) for c in a.chunks))
        if key not in known:
            each, plain = len(a.q) // len(a.chunks), list(range(len(a.q)))
            found = [self._source(a, each, rider) for rider in self.riders or (None,)]
            known[key] = [torch.tensor(source, device=a.q.device) for source in found if source != plain]
        return known[key]

    def _source(self, a: SelfAttention, each: int, rider: ReferenceRow | None) -> list[int]:
        """`each`: rows of a chunk, those of an image (tiles, or the frames of a video) side by side."""
        of_image = each // a.run.latent_shapes[0][0]
        copies = {c.copy.of: i for i, c in enumerate(a.chunks) if c.copy is not None and c.copy.rider is rider}
        source = []
        for place, chunk in enumerate(a.chunks):
            own = range(place * each, (place + 1) * each)
            follows = chunk.copy is None and not (chunk.negative and self.positive_only)
            if follows and rider is None:
                source += [own.start + i % of_image for i in range(each)]
            elif follows and chunk.number in copies:
                source += [row + (copies[chunk.number] - place) * each for row in own]
            else:
                source += own
        return source

    def _with(self, a: SelfAttention, k: Tensor, v: Tensor, source: Tensor, visible: Tensor | None) -> Tensor:
        """What the image tokens get with one reference, [rows, heads, image tokens, dim]."""
        following = source != torch.arange(len(source), device=source.device)
        theirs_k, theirs_v = (t[source][:, :, self._place(a, t)] for t in (k, v))
        q = a.q
        if self.adain:
            q, k = (self._aligned(t, self._place(a, t), source, following) for t in (q, k))
        bias = None
        # A row that looks at all of itself a second time is as it was; not one that looks at a text as well.
        if self.share != 0 or visible is not None or theirs_k.shape[2] != k.shape[2]:
            bias = share_bias(k.shape[2], theirs_k, self.share, visible, following)
        more = Further(theirs_k.shape[2], bias)
        return a.attend(q, torch.cat([k, theirs_k], 2), torch.cat([v, theirs_v], 2), a.image, more)

    def _place(self, a: SelfAttention, tokens: Tensor) -> slice:
        """Of the image in queries or keys. Where another node has merged queries, keys are all that there are."""
        return a.image if tokens.shape[2] == a.q.shape[2] else slice(0, tokens.shape[2])

    def _aligned(self, tokens: Tensor, image: slice, source: Tensor, following: Tensor) -> Tensor:
        own = tokens[:, :, image]
        found = torch.where(following[:, None, None, None], adain(own, own[source]), own)
        return torch.cat([tokens[:, :, : image.start], found, tokens[:, :, image.stop :]], 2)

    def _visible(self, a: SelfAttention) -> Tensor | None:
        """[image tokens], brought to the device once in a run."""
        if self.mask is None:
            return None
        if a.afterwards is not None:
            raise ValueError(
                f"{LABEL} has a mask, and another node has merged the tokens of block {a.block.kind} {a.block.number} "
                "or cut them into tiles, so that their positions are not known. Take one of the two off the model."
            )
        known, key = a.run.notes.setdefault((self, "masks"), {}), (a.grid, a.q.device)
        if key not in known:
            small = torch.nn.functional.interpolate(self.mask[:1, None].float(), a.grid[-2:], mode="area")[0, 0]
            known[key] = (small > 0.5).expand(a.grid).flatten().to(a.q.device)
        return known[key]


class StyleAligned(RangedNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidekitStyleAligned",
            display_name="StyleAligned (shared attention)",
            category="guidekit/attention",
            description="Images in one style: in self-attention they also attend to the first image of the batch, or "
            "to an image that you give, and their queries and keys take over its mean and spread. No training.",
            search_aliases=[
                "StyleAligned",
                "style aligned",
                "same style",
                "consistent style",
                "style transfer",
                "style reference",
                "reference only",
                "reference attention",
                "shared attention",
                "same subject",
                "consistent character",
                "AdaIN",
                "BootPIG",
            ],
            inputs=[
                io.Model.Input(
                    "model", tooltip="A UNet (SD1, SD2, SDXL); transformers (SD3, Flux, Wan and more) are experimental."
                ),
                io.Combo.Input(
                    "reference",
                    options=REFERENCES,
                    default=FIRST_IMAGE,
                    tooltip="What to follow: the batch's first image, which stays as it is, or the latent connected "
                    "below.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.001,
                    tooltip="Weight of the result against plain attention. 1 is the paper's; 0 is off and costs "
                    "nothing.",
                ),
                io.Float.Input(
                    "share",
                    default=0.0,
                    min=-10.0,
                    max=10.0,
                    step=0.1,
                    round=0.001,
                    tooltip="How much the reference counts relative to the image itself, in nats: 0 as much, 0.69 "
                    "twice as much (the authors' value for a given image), -0.69 half as much.",
                ),
                io.Boolean.Input(
                    "adain",
                    default=True,
                    tooltip="Queries and keys take over the mean and spread of the reference's (AdaIN), as in the "
                    "paper. Off: reference attention.",
                ),
                blocks_input(),
                io.Combo.Input(
                    "apply_to",
                    options=APPLY_TO,
                    default=APPLY_TO[0],
                    tooltip="Whether the negative prompt's half of CFG follows its own reference too, as in the paper.",
                    advanced=True,
                ),
                *range_inputs(),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="For reference latent: an encoded image, or several, or a trajectory from Trajectory "
                    "Record, which is then followed step by step. Each runs through the model with the others: every "
                    "prediction costs one more per reference.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="The part of the reference that images may attend to. Not connected: all of it.",
                ),
                preset_input(),
            ],
            outputs=[io.Model.Output(tooltip="The model with shared attention."), report_output()],
            not_idempotent=True,
        )

    @classmethod
    @checked
    def execute(
        cls,
        model,
        reference,
        strength,
        share,
        adain,
        blocks,
        apply_to,
        start_percent,
        end_percent,
        latent=None,
        mask=None,
        preset=TYPED,
    ) -> io.NodeOutput:
        taken, told = resolve(cls, model, preset, share=share)
        share = taken["share"]
        model, when = model.clone(), Range(start_percent, end_percent)
        chosen = choose_blocks(model, blocks, self_attention_blocks(model))
        if reference == GIVEN and latent is None:
            raise ValueError(
                f"The reference is a latent, and none is connected. Connect one, or choose {FIRST_IMAGE} as reference."
            )
        if mask is not None and not (mask[0] > 0.5).any():
            raise ValueError(
                "The mask shows nothing of the reference: all of it is 0.5 or below. Paint the part that images may "
                "attend to."
            )
        if strength == 0:
            return with_report(model, report="")
        positive_only = apply_to == APPLY_TO[1]
        riders = _riders(model, latent, when, not positive_only) if reference == GIVEN else ()
        for rider in riders:
            add_reference_row(model, rider)
        settings = (strength, share, adain, mask, positive_only, when, riders)
        replace_self_attention(model, chosen, _Shared(*settings), order=FIRST)
        ignored = {} if reference == GIVEN else {"latent": latent}
        first = (
            f"mask holds {len(mask)} masks, of which the first is used." if mask is not None and len(mask) > 1 else ""
        )
        notes = (told, unused(cls, f"with reference '{reference}'", **ignored), first, _warning(model))
        return with_report(model, report=tell_settings(cls, *notes))


def _warning(model) -> str:
    return "" if family_of(model).name == "UNet" else _EXPERIMENTAL[0].upper() + _EXPERIMENTAL[1:]


def _riders(model, latent: dict, when: Range, for_negatives: bool) -> tuple[ReferenceRow, ...]:
    if isinstance(latent.get(KEY), Trajectory):
        recorded = Trajectory.of(latent, model)
        return (
            RecordedRow(
                label=LABEL,
                latent=recorded.image,
                noise=NOISY,
                active=when.active,
                for_negatives=for_negatives,
                sigmas=recorded.sigmas,
                latents=recorded.latents,
            ),
        )
    samples = fit_latent(model, latent["samples"], "latent")
    if len(samples) > _MOST:
        raise ValueError(
            f"latent holds {len(samples)} references, and each costs a prediction more. Give up to {_MOST} (Latent "
            "From Batch)."
        )
    return tuple(ReferenceRow(LABEL, each[None], NOISY, when.active, for_negatives) for each in samples)
