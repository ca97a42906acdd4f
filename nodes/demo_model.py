"""The embedded demo models as a loader node."""

from comfy_api.latest import io

from ..demo.world.models import MODELS, load
from .host.inputs import checked


class DemoModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidekitDemoModel",
            display_name="Guidekit Demo Model",
            category="guidekit/demo",
            description="A tiny text-to-image model that comes with the pack: 64x64 images of one to three solids on a "
            "floor, in seconds on any machine. For trying nodes and for tests.",
            search_aliases=["demo", "tiny model", "toy model", "test model", "sample checkpoint"],
            inputs=[
                io.Combo.Input(
                    "family",
                    options=list(MODELS),
                    default="unet",
                    tooltip="unet: SD2 type, v-prediction. dit: Flux type, rectified flow. unet_early: the unet after "
                    'little training, for Autoguidance. All take prompts such as "a large glossy red ball left of a '
                    'small metal blue cube on grass at sunset".',
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="For any sampler; 64x64 images."),
                io.Clip.Output(tooltip="For CLIP Text Encode. Words it does not know are left out and logged."),
                io.Vae.Output(tooltip="For VAE Decode and Encode, the tiled ones too."),
            ],
        )

    @classmethod
    @checked
    def execute(cls, family) -> io.NodeOutput:
        return io.NodeOutput(*load(family))
