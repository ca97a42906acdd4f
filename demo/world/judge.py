"""The evaluation judge: finds the solids in an image and says what they are, and gives the features for the Fréchet
distance.

It was trained on drawn scenes only, never on generated images, and no technique may be guided by it.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from .scenes import COLOURS, EXTENTS, FLOORS, MATERIALS, SHAPES, SLOTS, TIMES, Scenes

FEATURES = 64
CELL = 4  # pixels a side: the grid on which solids are found
OBJECT = {"shape": SHAPES, "colour": COLOURS, "material": MATERIALS, "extent": EXTENTS}  # said of each solid
WHOLE = {"floor": FLOORS, "time": TIMES}  # said of the image
THRESHOLD = 0.3  # from which on a peak is a solid


def _block(before: int, after: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1), nn.GroupNorm(8, after), nn.SiLU())


class _Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(_block(width, width), nn.Conv2d(width, width, 3, 1, 1), nn.GroupNorm(8, width))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.silu(x + self.body(x))


class Judge(nn.Module):
    def __init__(self):
        super().__init__()
        self.fine = nn.Sequential(
            nn.PixelUnshuffle(2), _block(12, 48), _Residual(48), _Residual(48), _block(48, 64, 2), _Residual(64)
        )
        self.coarse = nn.Sequential(_block(64, 96, 2), _Residual(96))
        self.joined = nn.Sequential(_block(64 + 96, 96), _Residual(96))
        self.peak = nn.Conv2d(96, 1, 1)
        self.object = nn.Conv2d(96, sum(map(len, OBJECT.values())), 1)
        self.features = nn.Linear(96, FEATURES)
        self.whole = nn.Linear(FEATURES, sum(map(len, WHOLE.values())))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """For RGB in 0..1 [n, 3, H, W]: logits `peak` [n, h, w] and of OBJECT [n, classes, h, w] on the grid, of WHOLE
        [n, classes], and `features` [n, FEATURES]."""
        fine = self.fine(images * 2 - 1)
        coarse = self.coarse(fine)
        wide = nn.functional.interpolate(coarse, fine.shape[-2:], mode="nearest")
        grid = self.joined(torch.cat([fine, wide], 1))
        features = self.features(coarse.mean((2, 3)))
        said = {"peak": self.peak(grid)[:, 0], "features": features}
        said |= dict(zip(OBJECT, self.object(grid).split([len(c) for c in OBJECT.values()], 1)))
        whole = self.whole(nn.functional.silu(features))
        return said | dict(zip(WHOLE, whole.split([len(c) for c in WHOLE.values()], 1)))


@dataclass(frozen=True)
class Found:
    """What the judge found in n images; of each solid, from left to right, [n, SLOTS], -1 in empty slots."""

    count: Tensor  # [n]; more than SLOTS where there are more
    shape: Tensor
    colour: Tensor
    material: Tensor
    extent: Tensor
    floor: Tensor  # [n]
    time: Tensor  # [n]
    features: Tensor  # [n, FEATURES]

    def right(self, scenes: Scenes, *names: str) -> Tensor:
        """Whether there are as many solids as in `scenes` and all of them are right in `names`, [n]."""
        right = self.count == scenes.count
        for name in names:
            same = getattr(self, name) == getattr(scenes, name)
            right = right & (same | ~scenes.present).all(1)
        return right

    def named(self, scenes: Scenes) -> Tensor:
        """The share of the solids of `scenes` that are somewhere in the image in their shape and colour, [n]."""
        same = (self.shape[:, :, None] == scenes.shape[:, None]) & (self.colour[:, :, None] == scenes.colour[:, None])
        there = same.any(1) & scenes.present
        return there.sum(1) / scenes.count

    def mixed_up(self, scenes: Scenes) -> Tensor:
        """Binding errors: all shapes and all colours of `scenes` are there, but not on the solids or not in the places
        that they should be, [n]."""
        same = self.right(scenes)
        for name in ("shape", "colour"):
            wanted = torch.where(scenes.present, getattr(scenes, name), -1)
            same = same & (getattr(self, name).sort(1).values == wanted.sort(1).values).all(1)
        return same & ~self.right(scenes, "shape", "colour")


@torch.inference_mode()
def find(judge: Judge, images: Tensor) -> Found:
    """Solids are the peaks of the judge's map, at most SLOTS of them, sorted by their place."""
    said = judge(images)
    heat = said["peak"].sigmoid()
    peaks = (heat == nn.functional.max_pool2d(heat[:, None], 3, 1, 1)[:, 0]) & (heat > THRESHOLD)
    count = peaks.flatten(1).sum(1)
    score, cell = torch.where(peaks, heat, 0).flatten(1).topk(SLOTS)
    column = torch.where(score > 0, cell % heat.shape[-1], heat.shape[-1])
    order = column.argsort(dim=1, stable=True)
    cell, score = cell.gather(1, order), score.gather(1, order)
    solids = {}
    for name in OBJECT:
        classes = said[name].argmax(1).flatten(1).gather(1, cell)
        solids[name] = torch.where(score > 0, classes, -1)
    whole = {name: said[name].argmax(1) for name in WHOLE}
    return Found(count=count, features=said["features"], **solids, **whole)


@cache
def load_judge() -> Judge:
    """The one that comes with the checkout."""
    from .models import read_tensors, weights_file

    judge = Judge().eval().requires_grad_(False)
    judge.load_state_dict(read_tensors(weights_file("judge"))[0])
    return judge
