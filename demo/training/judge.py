"""Trains the judge on drawn scenes: `python dev.py python -m guidekit.demo.training.judge FOLDER`."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..world.judge import CELL, OBJECT, WHOLE, Judge, find
from ..world.render import SIZE
from ..world.scenes import Scenes, project
from .draw import chunk_file
from .files import load_scenes
from .optimizer import Optimizer
from .state import Training

SEED = 22
BATCH = 48
ENDS = ("fine.1.0.weight", "peak.weight", "object.weight", "whole.weight")


def spoil(images: Tensor, generator: torch.Generator | None) -> Tensor:
    """What guidance and decoding do to images: more or less saturation and contrast, blur, noise."""
    chance = {"generator": generator, "device": images.device}

    def pick(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand((len(images), 1, 1, 1), **chance)

    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * pick(0.7, 1.8)
    images = 0.5 + (images - 0.5) * pick(0.75, 1.7)
    blurred = nn.functional.avg_pool2d(nn.functional.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    images = torch.lerp(images, blurred, pick(0, 0.5))
    return (images + torch.randn(images.shape, **chance) * pick(0, 0.03)).clamp(0, 1)


@dataclass(frozen=True)
class Targets:
    """What a judge without fault says of n images."""

    hill: Tensor  # [n, h, w], 1 at the middle of each solid
    cells: dict[str, Tensor]  # of OBJECT: the class that a cell speaks of, [n, h, w], -1 where there is none
    whole: dict[str, Tensor]  # of WHOLE, [n]

    def take(self, rows: Tensor) -> "Targets":
        cells, whole = ({name: part[name][rows].long() for name in part} for part in (self.cells, self.whole))
        return Targets(self.hill[rows].float(), cells, whole)

    def to(self, device: torch.device) -> "Targets":
        cells, whole = ({name: part[name].to(device) for name in part} for part in (self.cells, self.whole))
        return Targets(self.hill.to(device), cells, whole)


def targets(scenes: Scenes) -> Targets:
    """A map with a hill of height 1 at each solid's middle; the cells around it speak for it."""
    x, z = scenes.place.unbind(-1)
    middle = project(torch.stack([x, scenes.radius, z], -1))
    side = SIZE // CELL
    axis = torch.arange(side)
    cell = ((middle[..., :2] + 1) * side / 2).floor()  # [n, slots, 2]
    across = (axis - cell[..., 0, None]).square()[:, :, None]
    down = (axis - cell[..., 1, None]).square()[:, :, :, None]
    square = torch.where(scenes.present[..., None, None], across + down, torch.inf)
    least, slot = square.min(1)
    here = least <= 1
    cells = {}
    for name in OBJECT:
        classes = getattr(scenes, name).gather(1, slot.flatten(1)).unflatten(1, slot.shape[1:])
        cells[name] = torch.where(here, classes, -1).to(torch.int8)
    whole = {name: getattr(scenes, name).to(torch.int8) for name in WHOLE}
    return Targets(torch.exp(-square / 1.5).amax(1), cells, whole)


def judge_loss(judge: nn.Module, images: Tensor, wanted: Targets) -> Tensor:
    """Focal loss of the peaks (Zhou et al. 2019) and cross-entropies of the classes where solids are."""
    said = judge(images)
    logit, here = said["peak"].float(), wanted.hill == 1
    p = logit.sigmoid()
    positive = -((1 - p) ** 2 * nn.functional.logsigmoid(logit)) * here
    negative = -((1 - wanted.hill) ** 4 * p**2 * nn.functional.logsigmoid(-logit)) * ~here
    loss = (positive + negative).sum() / here.sum()
    for name, classes in (wanted.cells | wanted.whole).items():
        loss = loss + nn.functional.cross_entropy(said[name].float(), classes.long(), ignore_index=-1)
    return loss


def drawn(folder: Path, split: str, chunks: range) -> tuple[Scenes, Tensor]:
    """The scenes of some chunks and their images, bytes."""
    parts = [load_scenes(chunk_file(folder, split, chunk)) for chunk in chunks]
    return Scenes.join([scenes for scenes, _ in parts]), torch.cat([more["images"] for _, more in parts])


class Loss:
    """The loss on a random batch of images (bytes, on any device)."""

    def __init__(self, judge: nn.Module, wanted: Targets, images: Tensor, batch: int = BATCH):
        self.judge, self.wanted, self.images, self.batch = judge, wanted, images, batch

    def __call__(self, generator: torch.Generator | None = None) -> Tensor:
        device = self.images.device
        rows = torch.randint(len(self.images), (self.batch,), generator=generator, device=device)
        images = spoil(self.images[rows].float() / 255, generator)
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
            return judge_loss(self.judge, images, self.wanted.take(rows))


def report(judge: Judge, scenes: Scenes, images: Tensor) -> str:
    found = find(judge, images)
    shares = {"count": found.right(scenes)}
    shares |= {name: found.right(scenes, name) for name in OBJECT}
    shares["shape and colour"] = found.right(scenes, "shape", "colour")
    shares |= {name: getattr(found, name) == getattr(scenes, name) for name in WHOLE}
    two = scenes.count == 2
    shares["shape and colour of both of two"] = shares["shape and colour"][two]
    return "unseen: " + ", ".join(f"{name} {100 * right.float().mean():.1f} %" for name, right in shares.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--chunks", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    judge = Judge()
    optimizer = Optimizer(judge, ENDS, muon=3e-3, adam=2e-3)
    training = Training("judge", judge, optimizer, options.folder, SEED)
    scenes, images = drawn(options.folder, "training", range(options.chunks))
    training.run(options.steps, Loss(torch.compile(judge), targets(scenes), images))
    judge.load_state_dict(training.average.weights)
    scenes, images = drawn(options.folder, "judge", range(2))
    training.say(report(judge.eval(), scenes, images.float() / 255))


if __name__ == "__main__":
    main()
