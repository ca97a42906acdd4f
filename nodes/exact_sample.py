"""Sampling from an exact inversion (see exact_invert.py)."""

import comfy.sampler_helpers
import torch
from comfy_api.latest import io

from ..samplers.inversion.reversible import Pair, unchanged
from .host.inputs import checked
from .host.inversion.exact import FromNoise
from .host.inversion.exact_state import Inverted
from .host.inversion.sampler import sample_schedule


class ExactSample(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidekitExactSample",
            display_name="Exact Inversion Sampling",
            category="guidekit/inversion",
            description="From the noise of Exact Inversion back to the image: with the same guider as it was, with "
            "another prompt edited. Schedule and method are those of the inversion.",
            search_aliases=[
                "EDICT",
                "BELM",
                "exact inversion",
                "edit an image",
                "reconstruct",
                "resample",
                "edit photo",
                "inpaint",
            ],
            inputs=[
                io.Guider.Input(
                    "guider", tooltip="The guider of the inversion to reconstruct; one with another prompt to edit."
                ),
                io.Latent.Input("inverted", tooltip="From Exact Inversion."),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the image may change; outside it stays as it was. Needs "
                    "keep_trajectory in Exact Inversion.",
                ),
            ],
            outputs=[io.Latent.Output(tooltip="The image, for VAE Decode.")],
        )

    @classmethod
    @checked
    def execute(cls, guider, inverted, mask=None) -> io.NodeOutput:
        model = guider.model_patcher
        state = Inverted.of(inverted, model)
        after = unchanged if mask is None else _Outside(state, mask)
        sampler = FromNoise(state.make_method(), state.pair, after)
        pair = sample_schedule(guider, sampler, state.sigmas, state.image)
        return io.NodeOutput({"samples": model.model.process_latent_out(pair.x).float()})


class _Outside:
    """Restores the source's latents outside a mask, at every noise level."""

    def __init__(self, state: Inverted, mask: torch.Tensor):
        if state.trajectory is None:
            raise ValueError("A mask needs the latents of every step. Switch keep_trajectory on in Exact Inversion.")
        self.trajectory, self.first = state.trajectory, state.make_method().first
        self.mask = comfy.sampler_helpers.prepare_mask(mask, state.shown.shape, torch.device("cpu")).double()

    def __call__(self, i: int, pair: Pair) -> Pair:
        source = self.trajectory[i - self.first]
        mask = self.mask.to(pair.x)
        return Pair(*(mask * x + (1 - mask) * s.to(x) for s, x in zip(source, pair)))
