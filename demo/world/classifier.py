"""The classifier that guides on the demo models: another network than the judge, trained apart from it, on drawn
scenes that look as denoised estimates do. In the layout that the node Image Classifier reads."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .scenes import COLOURS, FLOORS, MATERIALS, SHAPES, TIMES, Scenes

SOLIDS = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
LABELS = (*SHAPES, *COLOURS, *MATERIALS, *FLOORS, *TIMES, *SOLIDS)  # each is there or not
SIZE = 64  # of the images that it is given
METADATA = {"labels": "\n".join(LABELS), "size": str(SIZE), "mean": "0.5 0.5 0.5", "std": "0.5 0.5 0.5"}
_WIDTHS = (24, 40, 64, 112)


def shapes(widths: Sequence[int] = _WIDTHS, labels: int = len(LABELS)) -> dict[str, torch.Size]:
    """Shapes of its weights, except those of the norms."""
    found = {"conv1.weight": (widths[0], 3, 7, 7), "fc.weight": (labels, widths[-1])}
    before = widths[0]
    for stage, width in enumerate(widths, 1):
        name = f"layer{stage}.0"
        found[f"{name}.conv1.weight"] = (width, before, 3, 3)
        found[f"{name}.conv2.weight"] = (width, width, 3, 3)
        if stage > 1:
            found[f"{name}.downsample.0.weight"] = (width, before, 1, 1)
        before = width
    return {name: torch.Size(shape) for name, shape in found.items()}


def there(scenes: Scenes) -> Tensor:
    """Which of LABELS are in the scenes, [n, labels]."""
    present = scenes.present[..., None]

    def any_of(classes: Tensor, many: int) -> Tensor:
        return ((classes[..., None] == torch.arange(many)) & present).any(1)

    solids = scenes.colour * len(SHAPES) + scenes.shape
    floor, time = (torch.nn.functional.one_hot(c, len(n)) for c, n in ((scenes.floor, FLOORS), (scenes.time, TIMES)))
    parts = [any_of(scenes.shape, len(SHAPES)), any_of(scenes.colour, len(COLOURS))]
    parts += [any_of(scenes.material, len(MATERIALS)), floor.bool(), time.bool(), any_of(solids, len(SOLIDS))]
    return torch.cat(parts, 1)
