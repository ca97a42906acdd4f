"""Trains the judge on drawn scenes: `python dev.py python -m guidekit.demo.training.judge FOLDER`."""

import argparse
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


def spoil(images: Tensor, generator: torch.Generator) -> Tensor:
    """What guidance and decoding do to images: more or less saturation and contrast, blur, noise."""

    def pick(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand((len(images), 1, 1, 1), generator=generator)

    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * pick(0.7, 1.8)
    images = 0.5 + (images - 0.5) * pick(0.75, 1.7)
    blurred = nn.functional.avg_pool2d(nn.functional.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    images = torch.lerp(images, blurred, pick(0, 0.5))
    return (images + torch.randn(images.shape, generator=generator) * pick(0, 0.03)).clamp(0, 1)


def targets(scenes: Scenes) -> tuple[Tensor, Tensor]:
    """A map with a hill of height 1 at each solid's middle, and which slot's solid a cell speaks for (-1: none)."""
    x, z = scenes.place.unbind(-1)
    middle = project(torch.stack([x, scenes.radius, z], -1))
    side = SIZE // CELL
    axis = torch.arange(side)
    cell = ((middle[..., :2] + 1) * side / 2).floor()  # [n, slots, 2]
    across = (axis - cell[..., 0, None]).square()[:, :, None]
    down = (axis - cell[..., 1, None]).square()[:, :, :, None]
    square = torch.where(scenes.present[..., None, None], across + down, torch.inf)
    hill = torch.exp(-square / 1.5).amax(1)
    least, slot = square.min(1)
    return hill, torch.where(least <= 1, slot, -1)


def judge_loss(judge: Judge, images: Tensor, scenes: Scenes) -> Tensor:
    """Focal loss of the peaks (Zhou et al. 2019) and cross-entropies of the classes where solids are."""
    said = judge(images)
    hill, slot = targets(scenes)
    logit, here = said["peak"].float(), hill == 1
    p = logit.sigmoid()
    positive = -((1 - p) ** 2 * nn.functional.logsigmoid(logit))[here].sum()
    negative = -((1 - hill) ** 4 * p**2 * nn.functional.logsigmoid(-logit))[~here].sum()
    loss = (positive + negative) / here.sum()
    n, row, column = (slot >= 0).nonzero(as_tuple=True)
    for name in OBJECT:
        classes = getattr(scenes, name)[n, slot[n, row, column]]
        loss = loss + nn.functional.cross_entropy(said[name].float()[n, :, row, column], classes)
    for name in WHOLE:
        loss = loss + nn.functional.cross_entropy(said[name].float(), getattr(scenes, name))
    return loss


def drawn(folder: Path, split: str, chunks: range) -> tuple[Scenes, Tensor]:
    """The scenes of some chunks and their images, bytes."""
    parts = [load_scenes(chunk_file(folder, split, chunk)) for chunk in chunks]
    return Scenes.join([scenes for scenes, _ in parts]), torch.cat([more["images"] for _, more in parts])


class Loss:
    def __init__(self, judge: Judge, scenes: Scenes, images: Tensor):
        self.judge, self.scenes, self.images = torch.compile(judge), scenes, images

    def __call__(self, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(self.images), (BATCH,), generator=generator)
        images = spoil(self.images[rows].float() / 255, generator)
        with torch.autocast("cpu", torch.bfloat16):
            return judge_loss(self.judge, images, self.scenes.take(rows))


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
    training.run(options.steps, Loss(judge, scenes, images))
    judge.load_state_dict(training.average.weights)
    scenes, images = drawn(options.folder, "judge", range(2))
    training.say(report(judge.eval(), scenes, images.float() / 255))


if __name__ == "__main__":
    main()
