"""Image classifiers for guidance."""

from pathlib import Path

from comfy_api.latest import io

from ..demo.world.models import weights_file
from .host.classifiers.image import CLASSIFIERS, load_classifier
from .host.classifiers.labels import ClassifierType
from .host.inputs import checked

DEMO = "demo"


class ImageClassifier(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidekitImageClassifier",
            display_name="Image Classifier",
            category="guidekit/guidance",
            description="Loads a classifier with fixed classes from models/classifiers: a ResNet in torchvision's "
            "layout. For GFCG and EluCD.",
            search_aliases=["classifier", "ResNet", "ImageNet", "GFCG", "EluCD"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=[DEMO, *CLASSIFIERS.names()],
                    tooltip="A safetensors file in models/classifiers; demo: for the demo models' images.",
                ),
                io.String.Input(
                    "labels",
                    multiline=True,
                    default="",
                    tooltip="Names of its classes, a line each, in order. Empty: from the file, or from a .txt or "
                    ".json of the same name beside it.",
                    advanced=True,
                ),
            ],
            outputs=[ClassifierType.Output(display_name="classifier", tooltip="For GFCG or EluCD.")],
        )

    @classmethod
    @checked
    def execute(cls, file, labels) -> io.NodeOutput:
        path = weights_file("classifier") if file == DEMO else CLASSIFIERS.path_of(file)
        if path is None:
            known = ", ".join(CLASSIFIERS.names()) or "nothing"
            raise ValueError(f"There is no file {file!r} in {CLASSIFIERS.shown}. It has: {known}.")
        return io.NodeOutput(load_classifier(Path(path), labels))
