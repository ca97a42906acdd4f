"""The embedded demo models as a loader node."""

from comfy_api.latest import io

from ..demo.models import MODELS, load
from .host.inputs import checked


class DemoModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidekitDemoModel",
            display_name="Guidekit Demo Model",
            category="guidekit/demo",
            description="A tiny text-to-image model that comes with the pack: 32x32 pictures of one shape, in seconds "
            "on any machine. For trying nodes and for tests.",
            search_aliases=["demo", "tiny model", "toy model", "test model", "sample checkpoint"],
            inputs=[
                io.Combo.Input(
                    "family",
                    options=list(MODELS),
                    default="unet",
                    tooltip="unet: SD2 type, v-prediction. dit: Flux type, rectified flow. Both take prompts such as "
                    '"a large red circle on a dark background, left".',
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="For any sampler; 32x32 pictures."),
                io.Clip.Output(tooltip="For CLIP Text Encode. Words it does not know are left out and logged."),
                io.Vae.Output(tooltip="For VAE Decode and Encode; lossless."),
            ],
        )

    @classmethod
    @checked
    def execute(cls, family) -> io.NodeOutput:
        return io.NodeOutput(*load(family))
