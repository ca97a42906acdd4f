"""Procedurally drawn, captioned pictures: the demo models' world, with unlimited ground truth.

One picture is one object on a background. Colours and backgrounds stay well inside the gamut, so that
over-guidance can be seen and measured as saturation and contrast. Needs only torch.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

SIZE = 32  # pixels a side

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
COLOURS = ("red", "yellow", "green", "cyan", "blue", "purple")
BACKGROUNDS = ("dark", "light", "striped", "checkered")
EXTENTS = ("small", "large")
POSITIONS = ("left", "right", "top", "bottom", "center")

HUES = (0.0, 0.15, 0.36, 0.50, 0.63, 0.82)  # of COLOURS, in turns
SYNONYMS = {
    "circle": ("circle", "disc"),
    "cross": ("cross", "plus"),
    "small": ("small", "tiny", "little"),
    "large": ("large", "big"),
    "center": ("center", "centre", "middle"),
}

_RADII = (0.48, 0.70)  # of EXTENTS, in half picture widths
_CENTRES = ((-0.28, 0.0), (0.28, 0.0), (0.0, -0.28), (0.0, 0.28), (0.0, 0.0))  # of POSITIONS, x right, y down


class Scenes(NamedTuple):
    """A batch of picture descriptions. The first five are class indices [n], int64; `jitter` holds what no
    caption mentions, [n, 10] uniform in -1..1."""

    shape: Tensor
    colour: Tensor
    background: Tensor
    extent: Tensor
    position: Tensor
    jitter: Tensor


def random_scenes(n: int, generator: torch.Generator) -> Scenes:
    """`n` independent scenes, uniform over all classes."""

    def pick(names: tuple) -> Tensor:
        return torch.randint(len(names), (n,), generator=generator)

    jitter = torch.rand((n, 10), generator=generator) * 2 - 1
    return Scenes(pick(SHAPES), pick(COLOURS), pick(BACKGROUNDS), pick(EXTENTS), pick(POSITIONS), jitter)


def draw(scenes: Scenes) -> Tensor:
    """The pictures of `scenes`, RGB in 0..1, [n, 3, SIZE, SIZE]."""
    j = scenes.jitter.T[:, :, None, None]
    axis = (torch.arange(SIZE) + 0.5) * (2 / SIZE) - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    centre = torch.tensor(_CENTRES)[scenes.position]
    radius = torch.tensor(_RADII)[scenes.extent][:, None, None] + 0.04 * j[0]

    # Object coordinates: centred, turned by up to 6 degrees, in units of the radius.
    dx = x - centre[:, 0, None, None] - 0.04 * j[1]
    dy = y - centre[:, 1, None, None] - 0.04 * j[2]
    angle = 0.10 * j[3]
    u = (dx * angle.cos() + dy * angle.sin()) / radius
    v = (dy * angle.cos() - dx * angle.sin()) / radius
    distances = torch.stack([f(u, v) for f in _DISTANCES], 1)
    distance = distances.gather(1, scenes.shape[:, None, None, None].expand(-1, 1, SIZE, SIZE)) * radius[:, None]
    coverage = (0.5 - distance * (SIZE / 2)).clamp(0, 1)

    hue = torch.tensor(HUES)[scenes.colour][:, None, None] + 0.02 * j[4]
    saturation = 0.66 + 0.10 * j[5]
    shading = 0.06 * (u * j[6] + v * j[7]).clamp(-1, 1)
    ink = _hsv_to_rgb(hue.expand_as(u), saturation.expand_as(u), 0.74 + 0.06 * j[8] + shading)
    return coverage * ink + (1 - coverage) * _background(scenes, x, y, j)


def _background(scenes: Scenes, x: Tensor, y: Tensor, j: Tensor) -> Tensor:
    period, phase = 0.5, 0.10 * j[9]
    bars = ((x + y + phase) % period < period / 2).float()
    cells = (((x + phase) % period < period / 2) ^ ((y + phase) % period < period / 2)).float()
    level = torch.stack(
        [
            (0.17 + 0.03 * j[8]).expand_as(bars),
            (0.83 + 0.03 * j[8]).expand_as(bars),
            0.36 + 0.20 * bars,
            0.28 + 0.36 * cells,
        ],
        1,
    )
    grey = level.gather(1, scenes.background[:, None, None, None].expand(-1, 1, SIZE, SIZE))
    tint = 0.02 * torch.stack([j[5], j[6], j[7]], 1)[..., 0]  # [n, 3, 1]: a slight cast, so that grey is not exact
    return grey + tint[..., None]


def _circle(u: Tensor, v: Tensor) -> Tensor:
    return torch.hypot(u, v) - 0.95


def _square(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(u.abs(), v.abs()) - 0.84


def _triangle(u: Tensor, v: Tensor) -> Tensor:
    sides = torch.maximum(0.866 * u.abs() - 0.5 * v, v)  # an equilateral one, point up
    return sides - 0.52


def _star(u: Tensor, v: Tensor) -> Tensor:
    # Five points: fold into one tenth of a turn, then the signed distance to the edge from tip to notch.
    fold = math.pi / 5
    angle = torch.atan2(u, -v) % (2 * fold)
    angle = torch.minimum(angle, 2 * fold - angle)
    r = torch.hypot(u, v)
    tip, notch = 1.15, 0.50  # their distances from the centre
    edge = (notch * math.cos(fold) - tip, notch * math.sin(fold))
    across = (r * angle.cos() - tip) * edge[1] - r * angle.sin() * edge[0]
    return across / math.hypot(*edge)


def _ring(u: Tensor, v: Tensor) -> Tensor:
    return (torch.hypot(u, v) - 0.72).abs() - 0.25


def _cross(u: Tensor, v: Tensor) -> Tensor:
    upright = torch.maximum(u.abs() - 0.30, v.abs() - 1.0)
    lying = torch.maximum(u.abs() - 1.0, v.abs() - 0.30)
    return torch.minimum(upright, lying)


_DISTANCES = (_circle, _square, _triangle, _star, _ring, _cross)  # signed, in radii, negative inside; of SHAPES


def _hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    channels = []
    for n in (5.0, 3.0, 1.0):
        k = (n + hue * 6) % 6
        channels.append(value - value * saturation * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, 1)


def caption(scenes: Scenes, i: int, words: tuple[bool, bool, bool] = (True, True, True), synonym: int = 0) -> str:
    """Scene `i` in plain words: "a large red circle on a dark background, left".

    `words` says whether extent, background and position are mentioned; `synonym` picks among equal words."""

    def say(names: tuple, indices: Tensor) -> str:
        name = names[int(indices[i])]
        same = SYNONYMS.get(name, (name,))
        return same[synonym % len(same)]

    extent, background, position = words
    text = f"{say(COLOURS, scenes.colour)} {say(SHAPES, scenes.shape)}"
    text = f"a {say(EXTENTS, scenes.extent)} {text}" if extent else f"a {text}"
    if background:
        text += f" on a {say(BACKGROUNDS, scenes.background)} background"
    if position:
        text += f", {say(POSITIONS, scenes.position)}"
    return text


def random_captions(scenes: Scenes, generator: torch.Generator, dropout: float = 0.0) -> list[str]:
    """A caption per scene with random wording and random omissions; empty with probability `dropout`."""
    n = len(scenes.shape)
    said = torch.rand((n, 3), generator=generator) < torch.tensor([0.75, 0.8, 0.6])
    synonyms = torch.randint(6, (n,), generator=generator)
    empty = torch.rand((n,), generator=generator) < dropout
    return ["" if empty[i] else caption(scenes, i, tuple(said[i].tolist()), int(synonyms[i])) for i in range(n)]
