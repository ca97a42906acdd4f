"""CLIP (Radford et al., ICML 2021, arXiv 2103.00020) as a classifier for guidance."""

from comfy_api.latest import io

from .host.classifiers.clip import ClipClassifier
from .host.classifiers.labels import ClassifierType
from .host.inputs import checked


class CLIPClassifier(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidekitCLIPClassifier",
            display_name="CLIP Classifier",
            category="guidekit/guidance",
            description="A classifier whose classes are the candidates' prompts: how near an image is to each, as "
            "CLIP sees it. For GFCG.",
            search_aliases=["CLIP", "zero-shot", "classifier", "CLIP guidance", "GFCG"],
            inputs=[
                io.ClipVision.Input("clip_vision", tooltip="Of CLIP, from Load CLIP Vision."),
                io.Clip.Input(
                    "clip",
                    tooltip="Text encoders, one of which is of the same CLIP: clip_l for ViT-L, clip_g for ViT-bigG.",
                ),
            ],
            outputs=[ClassifierType.Output(display_name="classifier", tooltip="For GFCG.")],
        )

    @classmethod
    @checked
    def execute(cls, clip_vision, clip) -> io.NodeOutput:
        return io.NodeOutput(ClipClassifier(clip_vision, clip))
