"""Draws scenes: 64 x 64 images and masks, traced at twice the size and averaged. Needs only torch.

Light is computed in linear RGB: a sun (or moon) with soft shadows, the sky, light from the floor, highlights, and
mirrored surroundings in what is glossy or of metal. Values stay within the range, so that over-guidance can be seen and
measured.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from . import solids
from .scenes import EYE, HALF_WIDTH, MATERIALS, SHAPES, SLOTS, Scenes, camera

SIZE = 64  # pixels a side
_FINE = 2 * SIZE
SKY, FLOOR = -2, -1  # what a ray meets, beside the slots
_FAR = 60.0  # as far as the floor is seen
_PENUMBRA = 7.0  # the larger, the sharper the shadows

# Linear RGB of COLOURS.
_PAINTS = (
    (0.66, 0.025, 0.025), (0.85, 0.22, 0.01), (0.80, 0.62, 0.02), (0.03, 0.36, 0.04),
    (0.02, 0.50, 0.56), (0.02, 0.06, 0.60), (0.25, 0.04, 0.45), (0.80, 0.80, 0.80),
)  # fmt: skip
# For each of MATERIALS: reflectance at normal incidence, strength of the highlight, its sharpness.
_MIRRORS = (0.0, 0.06, 0.68)
_HIGHLIGHTS = (0.0, 1.1, 1.3)
_SHARPNESS = (1.0, 40.0, 18.0)

# For each of TIMES.
_ZENITHS = ((0.13, 0.30, 0.80), (0.16, 0.12, 0.36), (0.006, 0.010, 0.045))
_HORIZONS = ((0.62, 0.80, 0.95), (0.95, 0.42, 0.13), (0.045, 0.065, 0.17))
_SUNS = ((1.35, 1.28, 1.15), (1.60, 1.00, 0.55), (0.52, 0.58, 0.86))
_AMBIENTS = (0.50, 0.45, 1.9)  # how much of the sky's colour reaches a surface from above
_TOWARDS_SUN = ((-0.55, 0.95, -0.60), (0.95, 0.42, -0.55), (-0.70, 0.75, -0.45))


def draw(scenes: Scenes, batch: int = 16) -> tuple[Tensor, Tensor]:
    """The images of `scenes`, RGB in 0..1, [n, 3, SIZE, SIZE], and how much of each pixel shows each solid, [n, SLOTS,
    SIZE, SIZE]."""
    parts = [_draw(scenes.take(slice(i, i + batch))) for i in range(0, len(scenes), batch)]
    images, masks = zip(*parts)
    return torch.cat(images), torch.cat(masks)


def _draw(scenes: Scenes) -> tuple[Tensor, Tensor]:
    n = len(scenes)
    eye, rays, sun = torch.tensor(EYE), _rays(), _towards_sun(scenes)

    # What each ray meets first: a solid (its slot), the floor, or the sky.
    distance = torch.where(rays[:, 1] < 0, -EYE[1] / rays[:, 1].clamp(max=-1e-6), torch.inf)
    distance = torch.where(distance < _FAR, distance, torch.inf).expand(n, -1).clone()
    who = torch.where(distance.isfinite(), FLOOR, SKY)
    for slot in range(SLOTS):
        touched = _touch(scenes, slot, eye, rays)
        closer = touched < distance
        distance, who = torch.where(closer, touched, distance), torch.where(closer, slot, who)
    points = eye + distance.nan_to_num(posinf=_FAR)[..., None] * rays  # [n, R, 3]

    on_floor, on_solid = (who == FLOOR).nonzero(as_tuple=True), (who >= 0).nonzero(as_tuple=True)
    normals = _normals(scenes, on_solid[0], who[on_solid], points[on_solid])
    points[on_solid] += 0.02 * normals  # off the surface, which would hide the sun from itself
    shine = _sunshine(scenes, who, points, sun)
    colour = _sky(scenes.time[:, None].expand(n, len(rays)), rays.expand(n, -1, -1), scenes.jitter[:, None])
    colour[on_floor] = _light_floor(scenes, on_floor, points, distance, sun, shine, _openness(scenes, who, points))
    colour[on_solid] = _light_solids(scenes, on_solid, who, points, normals, rays, sun, shine)

    images = _develop(colour).movedim(-1, 1).unflatten(2, (_FINE, _FINE))
    masks = torch.stack([(who == slot).float() for slot in range(SLOTS)], 1).unflatten(2, (_FINE, _FINE))
    return torch.nn.functional.avg_pool2d(images, 2), torch.nn.functional.avg_pool2d(masks, 2)


def _rays() -> Tensor:
    """Directions of all rays, row by row, [R, 3]."""
    axis = (torch.arange(_FINE) + 0.5) * (2 / _FINE) - 1
    v, u = torch.meshgrid(axis, axis, indexing="ij")
    rays = torch.stack([u * HALF_WIDTH, -v * HALF_WIDTH, torch.ones_like(u)], -1).flatten(0, 1) @ camera()
    return torch.nn.functional.normalize(rays, dim=-1)


def _towards_sun(scenes: Scenes) -> Tensor:
    """[n, 3]; it stands a little elsewhere in each scene."""
    direction = torch.tensor(_TOWARDS_SUN)[scenes.time]
    angle = 0.35 * scenes.jitter[:, 0]
    x = direction[:, 0] * angle.cos() - direction[:, 2] * angle.sin()
    z = direction[:, 0] * angle.sin() + direction[:, 2] * angle.cos()
    y = direction[:, 1] * (1 + 0.2 * scenes.jitter[:, 1])
    return torch.nn.functional.normalize(torch.stack([x, y, z], -1), dim=-1)


def _develop(colour: Tensor) -> Tensor:
    """Linear light to display values; bright light is compressed, and nothing is quite black or white."""
    bright = colour.clamp(min=0)
    bright = torch.where(bright > 0.6, 0.6 + 0.4 * (1 - torch.exp(-(bright - 0.6) / 0.4)), bright)
    return 0.02 + 0.95 * bright.clamp(min=1e-6) ** (1 / 2.2)


# Solids and rays ----------------------------------------------------------------------------------------------------


def _to_local(scenes: Scenes, i: Tensor, slot: Tensor | int, shape: int, vectors: Tensor, places: bool) -> Tensor:
    """Points (or, without `places`, directions) [m, 3] of scenes i in the coordinates of a solid there."""
    if places:
        x, z = scenes.place[i, slot].unbind(-1)
        radius = scenes.radius[i, slot]
        vectors = (vectors - torch.stack([x, solids.HEIGHTS[shape] * radius, z], -1)) / radius[:, None]
    return _turn(vectors, -_angle(scenes, i, slot, shape))


def _angle(scenes: Scenes, i: Tensor, slot: Tensor | int, shape: int) -> Tensor:
    """A cube shows two sides, never only one; a ring shows its hole."""
    turn = scenes.turn[i, slot]
    return turn * 0.35 + math.pi / 5 if shape == 1 else turn * 0.6


def _turn(vectors: Tensor, angle: Tensor) -> Tensor:
    """About the vertical."""
    x, y, z = vectors.unbind(-1)
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([x * cos + z * sin, y, z * cos - x * sin], -1)


def _ball_around(scenes: Scenes, slot: int) -> tuple[Tensor, Tensor]:
    """Centre [n, 3] and radius [n] of the ball that holds the solid in a slot."""
    shape, radius, place = scenes.shape[:, slot], scenes.radius[:, slot], scenes.place[:, slot]
    centre = torch.stack([place[:, 0], torch.tensor(solids.HEIGHTS)[shape] * radius, place[:, 1]], -1)
    return centre, torch.tensor(solids.BOUNDS)[shape] * radius


def _touch(scenes: Scenes, slot: int, eye: Tensor, rays: Tensor) -> Tensor:
    """Distance [n, R] from the eye to the solid in a slot; inf where it is not seen."""
    centre, reach = _ball_around(scenes, slot)
    along = (centre - eye) @ rays.T
    depth = along.square() - ((centre - eye).square().sum(-1) - reach.square())[:, None]
    near = (depth > 0) & scenes.present[:, slot, None]
    distance = torch.full(near.shape, torch.inf)
    for shape, i, r in _by_shape(scenes, slot, near):
        radius, start = scenes.radius[i, slot], along[i, r] - depth[i, r].sqrt()
        p = _to_local(scenes, i, slot, shape, eye.expand(len(i), 3), True)
        d = _to_local(scenes, i, slot, shape, rays[r], False)
        distance[i, r] = solids.first_touch(shape, p, d, start / radius) * radius
    return distance


def _by_shape(scenes: Scenes, slot: int, chosen: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The chosen places of [n, R] as indices, by the shape of the solid in a slot."""
    for shape in range(len(SHAPES)):
        rows = (scenes.shape[:, slot] == shape).nonzero()[:, 0]
        i, r = chosen[rows].nonzero(as_tuple=True)
        if len(i):
            yield shape, rows[i], r


def _normals(scenes: Scenes, i: Tensor, slot: Tensor, points: Tensor) -> Tensor:
    """Outward directions at points [m, 3] on solids of scenes i."""
    normals = torch.empty_like(points)
    for shape in range(len(SHAPES)):
        m = (scenes.shape[i, slot] == shape).nonzero()[:, 0]
        if len(m):
            local = solids.normal(shape, _to_local(scenes, i[m], slot[m], shape, points[m], True))
            normals[m] = _turn(local, _angle(scenes, i[m], slot[m], shape))
    return normals


def _sunshine(scenes: Scenes, who: Tensor, points: Tensor, sun: Tensor) -> Tensor:
    """How much of the sun is seen from points [n, R, 3] that belong to `who`, 0..1."""
    shine = torch.ones(who.shape)
    up_sun = (points @ sun[:, :, None])[..., 0]
    square = points.square().sum(-1)
    for slot in range(SLOTS):
        centre, reach = _ball_around(scenes, slot)
        # The ray to the sun comes nearest to the centre after `along`, and passes it `aside`.
        along = (centre * sun).sum(-1, keepdim=True) - up_sun
        gap = square - 2 * (points @ centre[:, :, None])[..., 0] + centre.square().sum(-1, keepdim=True)
        aside = gap - along.square()
        # The sun is wide: what passes nearby takes a part of it.
        width = reach[:, None] + along.clamp(min=0) / _PENUMBRA
        near = (along > -reach[:, None]) & (aside < width.square()) & (who != SKY) & scenes.present[:, slot, None]
        ring = (scenes.shape[:, slot] == SHAPES.index("ring"))[:, None]
        near &= (who != slot) | ring  # the others do not throw shadows on themselves
        for shape, i, r in _by_shape(scenes, slot, near):
            p = _to_local(scenes, i, slot, shape, points[i, r], True)
            d = _to_local(scenes, i, slot, shape, sun[i], False)
            start = ((along[i, r] - 1.3 * reach[i]) / scenes.radius[i, slot]).clamp(min=0.15)
            shine[i, r] = torch.minimum(shine[i, r], solids.passing(shape, p, d, start, _PENUMBRA))
    return shine * shine * (3 - 2 * shine)


def _openness(scenes: Scenes, who: Tensor, points: Tensor) -> Tensor:
    """How open the floor is to the sky at points [n, R, 3]: darker where a solid is close."""
    free = torch.ones(who.shape)
    for slot in range(SLOTS):
        place, radius = scenes.place[:, slot, :, None], scenes.radius[:, slot, None]
        gap = (points[..., 0] - place[:, 0]).square() + (points[..., 2] - place[:, 1]).square()
        close = (gap < (2.0 * radius).square()) & (who == FLOOR) & scenes.present[:, slot, None]
        for shape, i, r in _by_shape(scenes, slot, close):
            gap = solids.DISTANCES[shape](_to_local(scenes, i, slot, shape, points[i, r], True))
            free[i, r] *= 0.30 + 0.70 * (gap.clamp(0, 0.7) / 0.7).sqrt()
    return free


# Light --------------------------------------------------------------------------------------------------------------


def _sky(time: Tensor, directions: Tensor, jitter: Tensor) -> Tensor:
    """Colour of the sky in `directions` [..., 3]; `time` [...], `jitter` [..., JITTER] broadcast to them."""
    zenith, horizon = torch.tensor(_ZENITHS)[time], torch.tensor(_HORIZONS)[time]
    height = directions[..., 1:2].clamp(0, 1)
    share = (height * 2.2).clamp(max=1).sqrt()
    colour = horizon * (1 - share) + zenith * share
    return colour * (1 + 0.12 * jitter[..., 8:9])


def _floor_paint(scenes: Scenes, i: Tensor, x: Tensor, z: Tensor, distance: Tensor) -> Tensor:
    """Linear RGB [m, 3] of the floors of scenes i at x, z; details fade with the `distance` to the eye."""
    paint = torch.empty(len(i), 3)
    kinds = scenes.floor[i]
    for kind, pattern in enumerate(_PATTERNS):
        m = (kinds == kind).nonzero()[:, 0]
        if len(m):
            fade = torch.exp(-((distance[m] / 14.0) ** 2))
            paint[m] = pattern(x[m], z[m], scenes.jitter[i[m]], fade)
    return paint * (1 + 0.10 * scenes.jitter[i, 4:5])


def _waves(x: Tensor, z: Tensor, jitter: Tensor, scale: float) -> Tensor:
    """A smooth pattern without direction, about -1..1; its phases are the scene's."""
    total = torch.zeros_like(x)
    for k, angle in enumerate((0.3, 1.5, 2.6)):
        frequency = scale * (1 + 0.37 * k)
        bend = torch.sin(0.6 * frequency * (x * math.cos(angle + 1) + z * math.sin(angle + 1)) + 5 * jitter[:, 9 + k])
        total += torch.sin(frequency * (x * math.cos(angle) + z * math.sin(angle)) + 7 * jitter[:, 9 + k] + 1.3 * bend)
    return total / 2.2


def _wood(x: Tensor, z: Tensor, jitter: Tensor, fade: Tensor) -> Tensor:
    across = (x + 0.4 * jitter[:, 2]) / 0.80
    plank = across.floor()
    tone = torch.sin(plank * 12.9898 + 3 * jitter[:, 9])
    grain = torch.sin(7 * across + 1.6 * torch.sin(0.9 * z + 5 * tone) + 4 * tone)
    seam = torch.exp(-((((across - plank - 0.5).abs() - 0.5) / 0.045) ** 2))
    value = 1 + fade * (0.22 * tone + 0.13 * grain) - 0.55 * seam * fade
    return torch.tensor([0.36, 0.17, 0.065]) * value[:, None]


def _tiles(x: Tensor, z: Tensor, jitter: Tensor, fade: Tensor) -> Tensor:
    side = 0.95
    a, b = (x + 0.45 * jitter[:, 2]) / side, (z + 0.45 * jitter[:, 3]) / side
    dark = ((a.floor() + b.floor()) % 2)[:, None] * fade[:, None] + 0.5 * (1 - fade[:, None])
    return torch.lerp(torch.tensor([0.58, 0.57, 0.54]).expand(len(x), 3), torch.tensor([0.13, 0.14, 0.17]), dark)


def _grass(x: Tensor, z: Tensor, jitter: Tensor, fade: Tensor) -> Tensor:
    value = 1 + fade * (0.20 * _waves(x, z, jitter, 3.0) + 0.16 * _waves(1.8 * x, z, jitter, 8.0))
    return torch.tensor([0.085, 0.23, 0.028]) * value[:, None]


def _sand(x: Tensor, z: Tensor, jitter: Tensor, fade: Tensor) -> Tensor:
    ripple = torch.sin(6.5 * z + 1.2 * torch.sin(1.3 * x + 3 * jitter[:, 9]) + 0.8 * x + 6 * jitter[:, 10])
    value = 1 + fade * (0.10 * ripple + 0.06 * _waves(x, z, jitter, 2.0))
    return torch.tensor([0.62, 0.46, 0.25]) * value[:, None]


_PATTERNS = (_wood, _tiles, _grass, _sand)  # of FLOORS
_MEANS = ((0.36, 0.17, 0.065), (0.33, 0.33, 0.33), (0.085, 0.23, 0.028), (0.62, 0.46, 0.25))  # of FLOORS


def _light_floor(
    scenes: Scenes, where: tuple, points: Tensor, distance: Tensor, sun: Tensor, shine: Tensor, free: Tensor
) -> Tensor:
    i = where[0]
    time, points, distance, free = scenes.time[i], points[where], distance[where], free[where]
    paint = _floor_paint(scenes, i, points[:, 0], points[:, 2], distance)
    light = _from_above(scenes.time)[i] * free[:, None]
    sunshine = (torch.tensor(_SUNS)[scenes.time] * sun[:, 1:2])[i]
    light = light + sunshine * (shine[where] * (0.5 + 0.5 * free))[:, None]
    haze = 1 - torch.exp(-((distance / 28.0) ** 2))[:, None]
    return torch.lerp(paint * light, torch.tensor(_HORIZONS)[time], haze)


def _from_above(time: Tensor) -> Tensor:
    zenith, horizon = torch.tensor(_ZENITHS)[time], torch.tensor(_HORIZONS)[time]
    return (0.5 * zenith + 0.5 * horizon) * torch.tensor(_AMBIENTS)[time][:, None]


def _light_solids(
    scenes: Scenes, where: tuple, who: Tensor, points: Tensor, normal: Tensor, rays: Tensor, sun: Tensor, shine: Tensor
) -> Tensor:
    i, slot, points, rays = where[0], who[where], points[where], rays[where[1]]
    time, towards = scenes.time[i], sun[i]
    material = scenes.material[i, slot]
    mirror, highlight, sharpness = (torch.tensor(t)[material][:, None] for t in (_MIRRORS, _HIGHLIGHTS, _SHARPNESS))
    metal = (material == MATERIALS.index("metal"))[:, None]
    paint = torch.tensor(_PAINTS)[scenes.colour[i, slot]]
    sunlight = torch.tensor(_SUNS)[time]

    # Light that is scattered: the sun's, the sky's from above, the floor's from below.
    facing = (normal * towards).sum(-1, keepdim=True)
    shine = shine[where][:, None] * (facing > 0)
    up = 0.5 + 0.5 * normal[:, 1:2]
    corner = (0.35 + 0.65 * (points[:, 1:2] / 0.5).clamp(0, 1)).clamp(max=1)  # darker where it stands
    floor = torch.tensor(_MEANS)[scenes.floor[i]] * (_from_above(time) + 0.5 * sunlight * towards[:, 1:2])
    around = (_from_above(time) * up + 0.7 * floor * (1 - up)) * corner
    scattered = paint * (around + sunlight * facing.clamp(min=0) * shine)

    # Light that is mirrored: the sky or the floor, and the sun as a highlight.
    back = rays - 2 * (rays * normal).sum(-1, keepdim=True) * normal
    grazing = 1 + (rays * normal).sum(-1, keepdim=True).clamp(-1, 0)
    share = mirror + (0.5 - 0.5 * mirror) * grazing**4 * (mirror > 0)
    seen = _surroundings(scenes, i, points, back, sunlight * towards[:, 1:2])
    tint = torch.where(metal, (paint.clamp(min=0.03) * 1.5).clamp(max=0.9), 1.0)
    spot = highlight * (back * towards).sum(-1, keepdim=True).clamp(min=0) ** sharpness * shine
    mirrored = share * tint * seen
    return scattered * torch.where(metal, 0.30, 1 - share) + mirrored + spot * sunlight * torch.where(metal, tint, 1.0)


def _surroundings(scenes: Scenes, i: Tensor, points: Tensor, directions: Tensor, sunlight: Tensor) -> Tensor:
    """What mirrors at points of scenes i show: the sky, or the floor (without shadows)."""
    time = scenes.time[i]
    sky = _sky(time, directions, scenes.jitter[i])
    down = directions[:, 1]
    distance = points[:, 1].clamp(min=0) / (-down).clamp(min=0.02)
    ground = points + distance[:, None] * directions
    paint = _floor_paint(scenes, i, ground[:, 0], ground[:, 2], distance + 15)
    floor = paint * (_from_above(time) * (0.3 + 0.7 * (distance / 0.8).clamp(max=1))[:, None] + sunlight * 0.8)
    blend = (0.5 - down / 0.06).clamp(0, 1)[:, None]
    return torch.lerp(sky, floor, blend)
