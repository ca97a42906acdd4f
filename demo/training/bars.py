"""Rates the states of a model by accuracy, burning and diversity, over captions of two solids that were never together
in training."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..measures import clipped, contrast, frechet, saturation, spread
from ..world.autoencoder import Autoencoder
from ..world.judge import Found, Judge, find
from ..world.scenes import Scenes, generator_of, random_scenes
from .gather import draw_on
from .look import Sampler, captioned, save_sheet

COLUMNS = 10  # of a sheet
FREE, SEEN, TYPICAL = (0.30, 0.75), 0.85, 4.0  # both solids right at cfg 1, at the best scale; a scale that is good


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    scales: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
    count: int = 500  # captions
    few: int = 250  # captions for states on the way
    steps: int = 25
    prompts: int = 30  # of which diversity is measured
    seeds: int = 10
    drawn: int = 2000  # for the Fréchet distance


def found_by(judge: Judge, images: Tensor) -> Found:
    """On the judge's device, the result on the CPU."""
    device = next(judge.parameters()).device
    parts = [find(judge, batch.to(device)) for batch in images.split(500)]
    return Found(*(torch.cat([getattr(p, name) for p in parts]).cpu() for name in Found.__dataclass_fields__))


def numbers(images: Tensor, scenes: Scenes, judge: Judge, drawn: Tensor) -> dict[str, float]:
    """Shares and means; `drawn`: the judge's features of drawn scenes like these."""
    found = found_by(judge, images)
    rows = {"count": found.right(scenes), "both": found.right(scenes, "shape", "colour")}
    rows |= {name: found.right(scenes, name) for name in ("shape", "colour", "material", "extent")}
    rows |= {"all of both": found.right(scenes, "shape", "colour", "material", "extent")}
    rows |= {"mixed up": found.mixed_up(scenes), "floor": found.floor == scenes.floor}
    rows |= {"time": found.time == scenes.time, "saturation": saturation(images), "contrast": contrast(images)}
    rows |= {"clipped": clipped(images)}
    shares = {name: row.float().mean().item() for name, row in rows.items()}
    return shares | {"fréchet": frechet(found.features, drawn)}


class Bars:
    """Measures states of a model until the time `until`; results are written down at once.

    Slow work that needs no judge is done here, before it is needed.
    """

    def __init__(self, family: str, autoencoder: Autoencoder, device: torch.device, extent: Extent):
        self.family, self.autoencoder, self.device, self.extent = family, autoencoder, device, extent
        self.scenes, self.captions = captioned(extent.count)
        self.like = random_scenes(extent.drawn, generator_of("evaluation", 1), "new pairs", 2)
        parts = [self.like.take(slice(i, i + 500)) for i in range(0, extent.drawn, 500)]
        self.images = torch.cat([draw_on(device, part).cpu() for part in parts]).float() / 255
        self.rows: dict[str, dict[str, float]] = {}

    def begin(self, judge: Judge, folder: Path, until: float, say: Callable[[str], None]) -> None:
        self.judge, self.folder, self.until, self.say = judge.eval().to(self.device), folder, until, say
        self.drawn = found_by(judge, self.images).features
        count = slice(self.extent.count)
        self._write("drawn", numbers(self.images[count], self.like.take(count), judge, self.drawn))

    def _write(self, name: str, row: dict[str, float]) -> None:
        self.rows[name] = row
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{self.family}-bars.json").write_text(json.dumps(self.rows, indent=1), "utf-8")
        self.say(f"{name}: " + ", ".join(f"{k} {v:.3f}" for k, v in row.items()))

    @property
    def late(self) -> bool:
        return time.time() > self.until

    def scale(self, state: str, sampler: Sampler, scale: float, count: int) -> Tensor:
        begun = time.time()
        images = sampler.sample(self.captions[:count], scale, self.extent.steps)
        row = numbers(images, self.scenes.take(slice(count)), self.judge, self.drawn)
        self._write(f"{state}, cfg {scale:g}", row | {"n": count, "seconds": time.time() - begun})
        return images

    def full(self, state: str, weights: Mapping[str, Tensor]) -> None:
        """All scales, with a sheet of images, and diversity."""
        sampler, sheet = Sampler(self.family, weights, self.autoencoder), []
        for scale in self.extent.scales:
            if self.late:
                break
            sheet.append(self.scale(state, sampler, scale, self.extent.count)[:COLUMNS])
        if sheet:
            save_sheet(sheet, self.folder / f"{self.family}-{state}.png")
        prompts = [c for c in self.captions[: self.extent.prompts] for _ in range(self.extent.seeds)]
        for scale in (self.extent.scales[0], TYPICAL, self.extent.scales[-1]):
            if self.late:
                break
            images = sampler.sample(prompts, scale, self.extent.steps, seed=1)
            value = spread(found_by(self.judge, images).features, self.extent.seeds)
            self._write(f"{state}, cfg {scale:g}, diversity", {"diversity": value})

    def brief(self, state: str, weights: Mapping[str, Tensor]) -> None:
        sampler = Sampler(self.family, weights, self.autoencoder)
        for scale in (1.0, TYPICAL):
            if not self.late:
                self.scale(state, sampler, scale, self.extent.few)

    def choose(self, states: list[str]) -> str | None:
        """The state with the best images at its best scale among those that leave room for improvement at cfg 1; else
        the one that comes nearest to that; None if nothing is known."""
        known = {}
        for state in states:
            both = {
                name: row["both"] for name, row in self.rows.items() if name.startswith(f"{state}, ") and "both" in row
            }
            if f"{state}, cfg 1" in both:
                free = both[f"{state}, cfg 1"]
                known[state] = (-max(FREE[0] - free, free - FREE[1], 0.0), max(both.values()))
        return max(known, key=known.get) if known else None
