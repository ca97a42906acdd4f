"""What is in a scene: one to three solids on a floor at a time of day, with unlimited ground truth.

Lengths are in world units: x to the right, y up, z away from the eye; the floor is y = 0. In the image, u goes to the
right and v down, -1..1 from edge to edge.
"""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

SHAPES = ("ball", "cube", "cylinder", "cone", "ring")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "white")
MATERIALS = ("matte", "glossy", "metal")
EXTENTS = ("small", "large")
FLOORS = ("wood", "tiles", "grass", "sand")
TIMES = ("day", "sunset", "night")

SLOTS = 3  # solids at most
RADII = (0.54, 0.84)  # of EXTENTS: half the height of a ball
JITTER = 12  # numbers per scene for properties that no caption mentions

# A pinhole camera, always at the same place: a place on the floor is a place in the image.
EYE = (0.0, 1.75, -5.6)
TARGET = (0.0, 0.35, 0.0)
HALF_WIDTH = 0.40  # of the image, at distance 1

SPLITS = ("training", "evaluation", "judge", "tests")
NOVELTIES = ("known", "new pairs", "new solids", "any")

# No training scene has a solid of one of these pairs of colour and shape: 4 of 40.
HELD_OUT = (("red", "ring"), ("blue", "cone"), ("yellow", "cylinder"), ("green", "cube"))

_COUNTS = (0.25, 0.50, 0.25)  # how often there are one, two, three solids
_DEPTHS = (-2.0, 1.0)  # nearest and farthest place
_TRIES = 48  # places tried for a set of solids before it is given up


@dataclass(frozen=True)
class Scenes:
    """A batch of n scenes. Fields with SLOTS columns describe each solid, from left to right in the image; slots from
    `count` on are empty and hold zeros. Classes are int64 indices."""

    count: Tensor  # [n], 1..SLOTS
    shape: Tensor
    colour: Tensor
    material: Tensor
    extent: Tensor
    place: Tensor  # [n, SLOTS, 2]: x, z
    radius: Tensor
    turn: Tensor  # about the vertical, radians
    floor: Tensor  # [n]
    time: Tensor  # [n]
    jitter: Tensor  # [n, JITTER] in -1..1

    def __len__(self) -> int:
        return len(self.count)

    def take(self, rows: Tensor | slice) -> "Scenes":
        """The scenes of a slice, a mask or indices."""
        return Scenes(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))

    def to(self, device: torch.device) -> "Scenes":
        return Scenes(*(getattr(self, field.name).to(device) for field in dataclasses.fields(self)))

    @property
    def present(self) -> Tensor:
        """Which slots hold a solid, [n, SLOTS]."""
        return torch.arange(SLOTS, device=self.count.device) < self.count[:, None]

    @staticmethod
    def join(parts: "list[Scenes]") -> "Scenes":
        """Batches one after the other."""
        return Scenes(*(torch.cat([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(Scenes)))


def generator_of(split: str, chunk: int) -> torch.Generator:
    """The random numbers of chunk 0, 1, ... of one of SPLITS; no two chunks of whatever splits share a seed.

    Raises:
        ValueError: unknown split, or a chunk outside 0 .. 2**29 - 1 (torch's generator takes 32 bits of a seed).
    """
    if split not in SPLITS:
        raise ValueError(f"There is no split {split!r}; there are {', '.join(SPLITS)}.")
    if not 0 <= chunk < 2**29:
        raise ValueError(f"A chunk is a number from 0 to {2**29 - 1}, not {chunk}.")
    return torch.Generator().manual_seed(chunk * len(SPLITS) + SPLITS.index(split))


def camera() -> Tensor:
    """Rows are the directions of u, of -v and of the view, [3, 3]."""
    forward = torch.nn.functional.normalize(torch.tensor(TARGET) - torch.tensor(EYE), dim=0)
    right = torch.tensor([1.0, 0.0, 0.0])
    return torch.stack([right, torch.linalg.cross(forward, right), forward])


def project(points: Tensor) -> Tensor:
    """Where points [..., 3] are in the image: u, v and the distance along the view."""
    right, up, forward = ((points - torch.tensor(EYE)) @ camera().T).unbind(-1)
    return torch.stack([right / (HALF_WIDTH * forward), -up / (HALF_WIDTH * forward), forward], -1)


def is_held_out(colour: Tensor, shape: Tensor) -> Tensor:
    """Whether solids have one of the HELD_OUT pairs of colour and shape."""
    table = torch.zeros(len(COLOURS), len(SHAPES), dtype=torch.bool)
    for c, s in HELD_OUT:
        table[COLOURS.index(c), SHAPES.index(s)] = True
    return table[colour, shape]


def are_held_apart(colour: Tensor, shape: Tensor) -> Tensor:
    """Whether two solids, the left one and the right one in the last dimension, are never together in training.

    A tenth of all pairs, so that captions of two solids can be new although every word and every solid is known.
    """
    kind = colour * len(SHAPES) + shape
    return (3 * kind[..., 0] + 7 * kind[..., 1] + kind[..., 0] // 10 + kind[..., 1] // 10) % 10 == 0


def novelty(scenes: Scenes) -> tuple[Tensor, Tensor]:
    """Which scenes [n] have a held-out solid, and which have two solids that are held apart."""
    present = scenes.present
    solid = (is_held_out(scenes.colour, scenes.shape) & present).any(1)
    pairs = torch.combinations(torch.arange(SLOTS))  # left, right
    apart = are_held_apart(scenes.colour[:, pairs], scenes.shape[:, pairs]) & present[:, pairs].all(-1)
    return solid, apart.any(1)


def random_scenes(n: int, generator: torch.Generator, novel: str = "any", count: int | None = None) -> Scenes:
    """`n` independent scenes, with `count` solids if given: "known" (as in training), of known solids in "new pairs",
    with "new solids", or "any".

    Raises:
        ValueError: `novel` is none of NOVELTIES, or there can be no such scene.
    """
    if novel not in NOVELTIES:
        raise ValueError(f"Scenes are {', '.join(NOVELTIES)}; {novel!r} is none of them.")
    shares = torch.tensor(_COUNTS)
    if novel == "new pairs":
        shares[0] = 0
    if count is not None and not (1 <= count <= SLOTS and shares[count - 1] > 0):
        raise ValueError(f"There are no scenes of {count} solids with novelty {novel!r}.")
    counts = torch.multinomial(shares, n, True, generator=generator) + 1
    if count is not None:
        counts[:] = count
    scenes = Scenes.join([_candidates(counts[:0], generator)])
    rows = torch.empty(n, dtype=torch.int64)
    for c in range(1, SLOTS + 1):
        wanted = (counts == c).nonzero()[:, 0]
        found = [scenes.take(slice(0))]
        while sum(map(len, found)) < len(wanted):
            candidates = _candidates(torch.full((max(2 * len(wanted), 64),), c), generator)
            found.append(candidates.take(_is_novel(candidates, novel)))
        rows[wanted] = len(scenes) + torch.arange(len(wanted))
        scenes = Scenes.join([scenes, Scenes.join(found).take(slice(len(wanted)))])
    return scenes.take(rows)


def _is_novel(scenes: Scenes, novel: str) -> Tensor:
    solid, apart = novelty(scenes)
    choices = {"known": ~solid & ~apart, "new pairs": ~solid & apart, "new solids": solid, "any": solid | ~solid}
    return choices[novel]


def _candidates(counts: Tensor, generator: torch.Generator) -> Scenes:
    """Scenes of so many solids, well seen: one for each of `counts`, or none if no places were found for them."""
    n = len(counts)

    def pick(names: tuple, *shape: int) -> Tensor:
        return torch.randint(len(names), shape, generator=generator)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    extent = pick(EXTENTS, n, SLOTS)
    radius = torch.tensor(RADII)[extent] * (0.94 + 0.12 * uniform(n, SLOTS))
    x = 5.0 * uniform(n, _TRIES, SLOTS) - 2.5
    z = _DEPTHS[0] + (_DEPTHS[1] - _DEPTHS[0]) * uniform(n, _TRIES, SLOTS)
    classes = [pick(SHAPES, n, SLOTS), pick(COLOURS, n, SLOTS), pick(MATERIALS, n, SLOTS), extent]
    turn = uniform(n, SLOTS) * 2 - 1
    floor, time = pick(FLOORS, n), pick(TIMES, n)
    jitter = uniform(n, JITTER) * 2 - 1

    present = torch.arange(SLOTS) < counts[:, None]
    good = _well_seen(x, z, radius[:, None].expand_as(x), present)
    first = good.int().argmax(1)  # the first try that is good
    place = torch.stack([x, z], -1)[torch.arange(n), first]
    u = _discs(place[..., 0], place[..., 1], radius)[..., 0]
    order = torch.where(present, u, torch.inf).argsort(1)

    def sort(column: Tensor) -> Tensor:
        by = order if column.ndim == 2 else order[..., None].expand_as(column)
        return column.gather(1, by) * (present if column.ndim == 2 else present[..., None])

    slots = [sort(c) for c in (*classes, place, radius, turn)]
    return Scenes(counts, *slots, floor, time, jitter).take(good.any(1))


def _discs(x: Tensor, z: Tensor, radius: Tensor) -> Tensor:
    """u, v and the radius of the disc that is approximately the image of a ball standing at x, z."""
    seen = project(torch.stack([x, radius, z], -1))
    return torch.stack([seen[..., 0], seen[..., 1], radius / (HALF_WIDTH * seen[..., 2])], -1)


def _well_seen(x: Tensor, z: Tensor, radius: Tensor, present: Tensor) -> Tensor:
    """Whether all solids are inside the image, apart from each other and hardly hidden: [n, tries]."""
    u, _, r = _discs(x, z, radius).unbind(-1)
    good = ((u.abs() + 1.08 * r < 0.97) | ~present[:, None]).all(-1)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        apart = torch.hypot(x[..., a] - x[..., b], z[..., a] - z[..., b]) > 1.1 * (radius[..., a] + radius[..., b])
        near, far = torch.where((z[..., a] < z[..., b])[..., None], r[..., [a, b]], r[..., [b, a]]).unbind(-1)
        beside = (u[..., a] - u[..., b]).abs() > near + 0.35 * far  # about two thirds of the farther one are seen
        good &= (apart & beside) | ~(present[:, a] & present[:, b])[:, None]
    return good
