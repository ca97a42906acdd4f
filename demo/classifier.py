"""The classifier that guides on the demo models: another network than the judge, trained apart from it, on drawn
pictures that look as denoised estimates do. In the layout that the node Image Classifier reads."""

from pathlib import Path

import torch

from .pictures import BACKGROUNDS, COLOURS, SHAPES

WEIGHTS = Path(__file__).with_name("classifier.safetensors")
CLASSES = (SHAPES, COLOURS, BACKGROUNDS)  # a picture has one of each
SIZE = 64  # of the pictures that it is given
METADATA = {
    "labels": "\n".join(label for group in CLASSES for label in group),
    "size": str(SIZE),
    "mean": "0.5 0.5 0.5",
    "std": "0.5 0.5 0.5",
}
_WIDTHS = (16, 24, 40, 64)


def shapes() -> dict[str, torch.Size]:
    """Of its weights, as far as they are not those of norms."""
    found = {"conv1.weight": (_WIDTHS[0], 3, 7, 7), "fc.weight": (sum(map(len, CLASSES)), _WIDTHS[-1])}
    before = _WIDTHS[0]
    for stage, width in enumerate(_WIDTHS, 1):
        name = f"layer{stage}.0"
        found[f"{name}.conv1.weight"] = (width, before, 3, 3)
        found[f"{name}.conv2.weight"] = (width, width, 3, 3)
        if stage > 1:
            found[f"{name}.downsample.0.weight"] = (width, before, 1, 1)
        before = width
    return {name: torch.Size(shape) for name, shape in found.items()}
