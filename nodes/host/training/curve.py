"""The course of a training as an image: while it runs, in the node; afterwards, as an output."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .trainer import Point

# Twice what is seen in a node of usual width.
_WIDTH, _PANEL, _GAP, _TITLE = 640, 170, 12, 30
_FONT = 23
_INK, _PAPER, _GRID = (30, 30, 30), (255, 255, 255), (200, 200, 200)
_SMOOTH = 0.2  # weight of the newest step in a running mean
_LINES = {
    "loss": (("loss", (60, 90, 200)),),
    "gain: liked, disliked": (("liked", (40, 150, 60)), ("disliked", (200, 60, 50))),
    "held out: liked, disliked": (("held_liked", (40, 150, 60)), ("held_disliked", (200, 60, 50))),
    "held out: pairs in the right order": (("right", (120, 60, 160)),),
}


def draw(curve: Sequence[Point], steps: int, headline: str = "") -> Image.Image:
    """Panels one above the other, for what is known; the last number of each line beside its title."""
    panels = {
        title: {name: _line(curve, name) for name, _ in lines}
        for title, lines in _LINES.items()
        if any(_line(curve, name) for name, _ in lines)
    }
    above = _TITLE + _GAP if headline else _GAP
    image = Image.new("RGB", (_WIDTH, above + max(len(panels), 1) * (_PANEL + _GAP)), _PAPER)
    pen = ImageDraw.Draw(image)
    _text(pen, _GAP // 2, headline)
    for i, (title, lines) in enumerate(panels.items()):
        _panel(pen, above + i * (_PANEL + _GAP), title, lines, dict(_LINES[title]), steps)
    return image


def as_image(image: Image.Image) -> Tensor:
    """IMAGE [1, H, W, 3]."""
    return torch.from_numpy(np.asarray(image).astype(np.float32) / 255)[None]


def with_previews(image: Image.Image, previews: Sequence[Image.Image]) -> Image.Image:
    """With previews below it, in a row."""
    if not previews:
        return image
    side = _WIDTH // max(len(previews), 3)
    whole = Image.new("RGB", (_WIDTH, image.height + side), _PAPER)
    whole.paste(image)
    for i, preview in enumerate(previews):
        scaled = preview.copy()
        scaled.thumbnail((side, side))
        if max(scaled.size) < side:
            scaled = scaled.resize([n * (side // max(scaled.size)) for n in scaled.size], Image.Resampling.NEAREST)
        whole.paste(scaled, (i * side, image.height))
    return whole


def _line(curve: Sequence[Point], name: str) -> list[tuple[int, float]]:
    """(step, value): a running mean of what every step has, and as it is what some have."""
    found: list[tuple[int, float]] = []
    mean = math.nan
    for point in curve:
        value = getattr(point, name)
        if math.isnan(value):
            continue
        every = name in ("loss", "liked", "disliked")
        mean = value if math.isnan(mean) or not every else mean + _SMOOTH * (value - mean)
        found.append((point.step, mean))
    return found


def _panel(pen: ImageDraw.ImageDraw, top: int, title: str, lines: dict, colours: dict, steps: int) -> None:
    first, last = top + _TITLE, top + _PANEL
    values = [value for line in lines.values() for _, value in line]
    low, high = min(values), max(values)
    if high - low < 1e-12:
        low, high = low - 0.5, high + 0.5
    newest = ", ".join(f"{line[-1][1]:.4g}" for line in lines.values() if line)
    _text(pen, top, f"{title}: {newest}")
    pen.rectangle((_GAP, first, _WIDTH - _GAP, last), outline=_GRID)
    if low < 0 < high:
        middle = _height(0.0, low, high, first, last)
        pen.line((_GAP, middle, _WIDTH - _GAP, middle), fill=_GRID)
    for name, line in lines.items():
        along = _WIDTH - 2 * _GAP
        places = [(_GAP + along * step / max(steps, 1), _height(value, low, high, first, last)) for step, value in line]
        if len(places) == 1:
            (x, y) = places[0]
            pen.ellipse((x - 2, y - 2, x + 2, y + 2), fill=colours[name])
        elif places:
            pen.line(places, fill=colours[name], width=3)


def _text(pen: ImageDraw.ImageDraw, top: int, text: str) -> None:
    pen.text((_GAP, top), text, fill=_INK, font=ImageFont.load_default(_FONT))


def _height(value: float, low: float, high: float, first: int, last: int) -> float:
    return last - (value - low) / (high - low) * (last - first)
