"""The demo models' world of solids: images and captions agree with the scene, checked by independent means."""

import dataclasses
import itertools
import math
import re

import pytest
import torch

from guidekit.demo.world import solids
from guidekit.demo.world.captions import NEARER_BY, plain_caption, random_captions, split_words
from guidekit.demo.world.render import SIZE, draw
from guidekit.demo.world.scenes import (
    COLOURS,
    EXTENTS,
    EYE,
    FLOORS,
    HALF_WIDTH,
    HELD_OUT,
    MATERIALS,
    NOVELTIES,
    RADII,
    SHAPES,
    SLOTS,
    SPLITS,
    TIMES,
    Scenes,
    are_held_apart,
    camera,
    generator_of,
    project,
    random_scenes,
)
from guidekit.demo.world.vocabulary import MAX_LENGTH, NAMES, THING, VOCABULARY

COUNT = 24
AXIS = (torch.arange(SIZE, dtype=torch.float64) + 0.5) * (2 / SIZE) - 1


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return random_scenes(COUNT, generator_of("tests", 0))


@pytest.fixture(scope="module")
def drawn(scenes) -> tuple[torch.Tensor, torch.Tensor]:
    return draw(scenes)


def only(scenes: Scenes, slot: int) -> Scenes:
    """The scenes with the solid of one slot, where there is one, and no other."""
    there = scenes.count > slot
    scenes = scenes.take(there)
    slots = {
        field.name: torch.zeros_like(value).index_copy(1, torch.tensor([0]), value[:, slot : slot + 1])
        for field in dataclasses.fields(scenes)
        if (value := getattr(scenes, field.name)).ndim > 1 and field.name != "jitter"
    }
    return dataclasses.replace(scenes, count=torch.ones_like(scenes.count), **slots)


# Chance


def test_a_seed_is_a_world():
    first, second = (random_scenes(8, generator_of("tests", 3)) for _ in range(2))
    for field in dataclasses.fields(Scenes):
        assert torch.equal(getattr(first, field.name), getattr(second, field.name))
    assert all(torch.equal(a, b) for a, b in zip(draw(first), draw(second)))


def test_no_two_chunks_share_a_seed():
    seeds = {generator_of(split, chunk).initial_seed() % 2**32 for split in SPLITS for chunk in (0, 1, 2, 2**29 - 1)}
    assert len(seeds) == 4 * len(SPLITS)
    with pytest.raises(ValueError, match="no split 'test'"):
        generator_of("test", 0)
    for chunk in (-1, 2**29):
        with pytest.raises(ValueError, match="from 0 to 536870911"):
            generator_of("tests", chunk)


def test_scenes_do_not_depend_on_their_batch(scenes, drawn):
    for i in (0, 5):
        alone = draw(scenes.take(slice(i, i + 1)))[0][0]
        # A ray that just touches a solid may miss it after another rounding.
        assert ((alone - drawn[0][i]).abs() > 0.01).float().mean() < 2e-3


def kinds(scenes: Scenes) -> list[list[tuple[str, str]]]:
    """The colours and shapes of the solids, from left to right."""
    return [
        [(COLOURS[scenes.colour[i, s]], SHAPES[scenes.shape[i, s]]) for s in range(scenes.count[i])]
        for i in range(len(scenes))
    ]


def apart(a: tuple[str, str], b: tuple[str, str]) -> bool:
    colour, shape = (torch.tensor([names.index(x) for x in xs]) for names, xs in zip((COLOURS, SHAPES), zip(a, b)))
    return bool(are_held_apart(colour, shape))


def test_training_never_meets_what_is_held_out():
    for there in kinds(random_scenes(1500, generator_of("training", 7), "known")):
        assert not set(there) & set(HELD_OUT)
        assert not any(apart(a, b) for i, a in enumerate(there) for b in there[i + 1 :])


def test_what_is_held_out_can_be_asked_for():
    for there in kinds(random_scenes(100, generator_of("tests", 8), "new solids")):
        assert set(there) & set(HELD_OUT)
    for there in kinds(random_scenes(100, generator_of("tests", 8), "new pairs", count=2)):
        assert len(there) == 2
        assert apart(*there)
        assert not set(there) & set(HELD_OUT)
    with pytest.raises(ValueError, match="no scenes of 1 solids with novelty 'new pairs'"):
        random_scenes(1, generator_of("tests", 8), "new pairs", 1)
    with pytest.raises(ValueError, match="'old' is none of them"):
        random_scenes(1, generator_of("tests", 8), "old")


def test_a_tenth_is_held_out():
    assert len(HELD_OUT) / (len(COLOURS) * len(SHAPES)) == 0.1
    every = [(c, s) for c in COLOURS for s in SHAPES]
    assert sum(apart(a, b) for a in every for b in every) / len(every) ** 2 == 0.1
    for one in every:  # and no solid is kept from all others
        assert 0 < sum(apart(one, other) for other in every) < 10


@pytest.mark.parametrize("novel", NOVELTIES)
def test_all_classes_occur(novel):
    scenes = random_scenes(1000, generator_of("tests", 9), novel)
    assert len(scenes) == 1000
    there = scenes.present
    for name, classes in (("shape", SHAPES), ("colour", COLOURS), ("material", MATERIALS), ("extent", EXTENTS)):
        shares = getattr(scenes, name)[there].bincount(minlength=len(classes)) / there.sum()
        assert (shares > 0.3 / len(classes)).all(), name
    for name, classes in (("floor", FLOORS), ("time", TIMES)):
        assert (getattr(scenes, name).bincount(minlength=len(classes)) > 700 / len(classes)).all(), name
    counts = scenes.count.bincount(minlength=SLOTS + 1)
    assert (counts[1:] > 180).all() or novel == "new pairs"
    for name in ("shape", "colour", "material", "extent", "radius", "turn", "place"):  # empty slots hold zeros
        assert not getattr(scenes, name)[~there].any()


# Images


def test_well_inside_the_gamut(drawn):
    images, masks = drawn
    assert images.shape == (COUNT, 3, SIZE, SIZE)
    assert masks.shape == (COUNT, SLOTS, SIZE, SIZE)
    assert images.min() > 0.01
    assert images.max() < 0.99
    assert (masks.sum(1) <= 1 + 1e-6).all()


def test_a_mask_is_where_a_solid_is_painted(scenes, drawn):
    """Paint one solid in another colour: just the pixels of its mask change."""
    for slot in range(SLOTS):
        other = scenes.colour.clone()
        other[:, slot] = (other[:, slot] + 3) % len(COLOURS)
        changed = (draw(dataclasses.replace(scenes, colour=other))[0] - drawn[0]).abs().amax(1) > 1e-5
        assert torch.equal(changed, drawn[1][:, slot] > 0)


def test_a_ball_is_where_geometry_has_it():
    """Its outline is the cone of rays that touch it, in double precision."""
    scenes = random_scenes(COUNT, generator_of("tests", 1), count=1)
    scenes = dataclasses.replace(scenes, shape=torch.zeros_like(scenes.shape))
    masks = draw(scenes)[1][:, 0].double()
    v, u = torch.meshgrid(AXIS, AXIS, indexing="ij")
    rays = torch.stack([u * HALF_WIDTH, -v * HALF_WIDTH, torch.ones_like(u)], -1) @ camera().double()
    rays = torch.nn.functional.normalize(rays, dim=-1)
    radius = scenes.radius[:, 0].double()
    middle = torch.stack([scenes.place[:, 0, 0], scenes.radius[:, 0], scenes.place[:, 0, 1]], -1).double()
    towards = middle - torch.tensor(EYE, dtype=torch.float64)
    distance = towards.norm(dim=-1)
    angle = (rays @ (towards / distance[:, None]).T).clamp(-1, 1).acos().movedim(-1, 0)
    edge = (radius / distance).asin()[:, None, None]
    pixel = 2 * HALF_WIDTH / SIZE
    assert (masks[angle < edge - pixel] == 1).all()
    assert (masks[angle > edge + pixel] == 0).all()


def test_solids_stand_from_left_to_right_and_are_well_seen(scenes, drawn):
    masks = drawn[1]
    middle = (masks * AXIS.float()).sum((2, 3)) / masks.sum((2, 3)).clamp(min=1)
    for i in range(COUNT):
        there = middle[i, : scenes.count[i]]
        assert (there.diff() > 0.1).all()
    for slot in range(SLOTS):
        alone = draw(only(scenes, slot))[1][:, 0].sum((1, 2))
        seen = masks[scenes.count > slot, slot].sum((1, 2))
        assert (seen > 40).all()
        assert (seen > 0.45 * alone).all()
        assert not masks[scenes.count <= slot, slot].any()


def test_a_place_is_seen_where_it_is_projected(scenes, drawn):
    u, v, _ = project(torch.stack([scenes.place[..., 0], scenes.radius, scenes.place[..., 1]], -1)).unbind(-1)
    for slot in range(SLOTS):
        alone = only(scenes, slot)
        mask = draw(alone)[1][:, 0]
        weight = mask / mask.sum((1, 2), keepdim=True)
        there = scenes.count > slot
        assert ((weight * AXIS.float()).sum((1, 2)) - u[there, slot]).abs().max() < 0.05
        assert ((weight * AXIS.float()[:, None]).sum((1, 2)) - v[there, slot]).abs().max() < 0.22


def test_large_is_larger_than_small():
    scenes = random_scenes(300, generator_of("tests", 2))
    large = scenes.extent == EXTENTS.index("large")
    assert scenes.radius[large].min() > 1.3 * scenes.radius[~large & scenes.present].max()
    assert RADII[1] > 1.5 * RADII[0]


def same_but(scenes: Scenes, **classes: int) -> torch.Tensor:
    """The images of the scenes with a class the same in all."""
    fields = {name: torch.full_like(getattr(scenes, name), value) for name, value in classes.items()}
    return draw(dataclasses.replace(scenes, **fields))[0]


def test_light_and_floors_differ(scenes):
    day, sunset, night = (same_but(scenes, time=t) for t in range(len(TIMES)))
    assert night.mean() < 0.7 * day.mean()
    warmth = [(images[:, 0] - images[:, 2]).mean() for images in (day, sunset, night)]
    assert warmth[1] > warmth[0] + 0.1 > warmth[2] + 0.1
    floors = [same_but(scenes, floor=f, time=0)[:, :, -12:].mean((0, 2, 3)) for f in range(len(FLOORS))]
    assert min((a - b).norm() for i, a in enumerate(floors) for b in floors[:i]) > 0.15


def test_what_shines_has_highlights():
    scenes = random_scenes(COUNT, generator_of("tests", 4), count=1)
    scenes = dataclasses.replace(scenes, shape=torch.zeros_like(scenes.shape), time=torch.zeros_like(scenes.time))
    masks = draw(scenes)[1][:, 0] > 0.9
    matte, glossy, metal = (same_but(scenes, material=m).mean(1) for m in range(len(MATERIALS)))

    def rises(images: torch.Tensor) -> torch.Tensor:
        """How far the brightest pixel of each solid is above its median."""
        return torch.stack([image[mask].max() - image[mask].median() for image, mask in zip(images, masks)])

    assert (rises(glossy) > rises(matte)).all()
    assert (rises(glossy) - rises(matte)).mean() > 0.1
    for i, mask in enumerate(masks):
        assert (metal[i][mask] - glossy[i][mask]).abs().mean() > 0.03


def test_a_solid_throws_a_shadow_away_from_the_sun(scenes, drawn):
    empty = draw(dataclasses.replace(scenes, count=torch.zeros_like(scenes.count)))[0]
    free = drawn[1].sum(1) == 0
    darker = (empty - drawn[0]).mean(1)
    assert (darker[free] > -1e-5).all()  # nothing gets brighter
    side = torch.stack([(AXIS.float() * (d > 0.05) * f).sum() / ((d > 0.05) * f).sum() for d, f in zip(darker, free)])
    u = project(torch.stack([scenes.place[..., 0], 0 * scenes.radius, scenes.place[..., 1]], -1))[..., 0]
    middle = (u * scenes.present).sum(1) / scenes.count
    sunset = scenes.time == TIMES.index("sunset")  # the sun is at the right, else at the left
    assert (side[sunset] < middle[sunset]).all()
    assert (side[~sunset] > middle[~sunset]).all()


# Solids


@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_distances_are_distances(shape):
    """Their gradient has length 1 outside, and they bound the solid as is said."""
    generator = torch.Generator().manual_seed(5)
    p = torch.randn((4000, 3), generator=generator, dtype=torch.float64).requires_grad_()
    distance = solids.DISTANCES[shape](p)
    [gradient] = torch.autograd.grad(distance.sum(), p)
    outside = distance > 1e-3
    assert torch.allclose(gradient[outside].norm(dim=-1), torch.ones(1, dtype=torch.float64), atol=1e-6)
    assert (p.norm(dim=-1)[distance < 0] < solids.BOUNDS[shape]).all()
    assert (p[distance < 0][:, 1] > -solids.HEIGHTS[shape] - 1e-6).all()  # nothing is below the floor
    on = p.detach()[outside] - (distance[:, None] * gradient)[outside]  # the nearest point is on the surface
    assert solids.DISTANCES[shape](on).abs().max() < 1e-6


@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_rays_end_on_the_surface(shape):
    """Against small steps along the ray."""
    generator = torch.Generator().manual_seed(6)
    start = torch.nn.functional.normalize(torch.randn((300, 3), generator=generator), dim=-1) * 4
    aim = torch.randn((300, 3), generator=generator) * 0.6
    d = torch.nn.functional.normalize(aim - start, dim=-1)
    t = solids.first_touch(shape, start, d, torch.full((300,), 4 - solids.BOUNDS[shape] - 0.01))
    steps = torch.linspace(2, 6, 2001)
    inside = solids.DISTANCES[shape](start[:, None] + steps[:, None] * d[:, None]) < 0
    first = torch.where(inside.any(1), steps[inside.int().argmax(1)], torch.inf)
    both = t.isfinite() & first.isfinite()
    assert both.sum() > 100
    assert (t[both] - first[both]).abs().max() < 0.05
    assert (t.isfinite() != first.isfinite()).float().mean() < 0.03  # those that just graze it


# Captions

_CLASS_OF = {word: name for name, words in NAMES.items() for word in words}


def parse(text: str) -> tuple[str, list[set[str]], set[str]]:
    """The phrase with a, b, c for its solids, what is said of them in turn, and what is said of the scene."""
    whole = set()
    for names in (TIMES, FLOORS):  # the time comes last
        for name, words in ((n, words) for n in names for words in NAMES[n]):
            if text.endswith(" " + words):
                text = text.removesuffix(" " + words)
                whole.add(name)
    said = []

    def solid(match: re.Match) -> str:
        said.append({_CLASS_OF[w] for w in match[1].split() if w != THING})
        return "<" + "abc"[len(said) - 1] + ">"

    adjectives = [w for n in (*EXTENTS, *MATERIALS, *COLOURS) for w in NAMES[n]]
    nouns = [w for n in SHAPES for w in NAMES[n]] + [THING]
    phrase = re.sub(rf"\ban? ((?:(?:{'|'.join(adjectives)}) )*(?:{'|'.join(nouns)}))\b", solid, text)
    return phrase, said, whole


def facts(scenes: Scenes, i: int, slot: int) -> set[str]:
    classes = (("extent", EXTENTS), ("material", MATERIALS), ("colour", COLOURS), ("shape", SHAPES))
    return {names[getattr(scenes, field)[i, slot]] for field, names in classes}


def is_true(phrase: str, said: list[set[str]], scenes: Scenes, i: int) -> bool:
    """Whether there is a way to tell the solids apart in which the phrase holds."""
    slots = range(int(scenes.count[i]))

    def holds(order: tuple[int, ...]) -> bool:
        if any(not what <= facts(scenes, i, s) for what, s in zip(said, order)):
            return False
        u, z = (lambda k: order[k]), (lambda k: scenes.place[i, order[k], 1].item())
        tests = {
            "<a>": lambda: True,
            "<a> left of <b>": lambda: u(0) < u(1),
            "<a> to the left of <b>": lambda: u(0) < u(1),
            "<a> right of <b>": lambda: u(0) > u(1),
            "<a> to the right of <b>": lambda: u(0) > u(1),
            "<a> on the left, <b> on the right": lambda: u(0) < u(1),
            "<a> in front of <b>": lambda: z(1) - z(0) >= NEARER_BY,
            "<a> behind <b>": lambda: z(0) - z(1) >= NEARER_BY,
            "<a> and <b>": lambda: True,
            "<a> next to <b>": lambda: True,
            "<a> beside <b>": lambda: True,
            "<a>, <b> and <c> from left to right": lambda: u(0) < u(1) < u(2),
            "<a> between <b> and <c>": lambda: u(1) < u(0) < u(2),
            "<a> left of <b> and <c>": lambda: u(0) < u(1) < u(2),
            "<a>, <b> and <c>": lambda: True,
        }
        return tests[phrase]()

    return any(holds(order) for order in itertools.permutations(slots))


def test_captions_say_the_truth():
    scenes = random_scenes(1200, generator_of("tests", 5))
    captions = random_captions(scenes, generator_of("tests", 6))
    phrases = set()
    for i, text in enumerate(captions):
        phrase, said, whole = parse(text)
        assert len(said) == scenes.count[i], text
        assert is_true(phrase, said, scenes, i), text
        assert whole <= {FLOORS[scenes.floor[i]], TIMES[scenes.time[i]]}, text
        phrases.add(phrase)
    assert len(phrases) == 15


def test_plain_captions_say_everything():
    scenes = random_scenes(200, generator_of("tests", 7))
    for i in range(200):
        phrase, said, whole = parse(plain_caption(scenes, i))
        assert [facts(scenes, i, slot) for slot in range(scenes.count[i])] == said
        assert phrase == ("<a>", "<a> left of <b>", "<a>, <b> and <c> from left to right")[len(said) - 1]
        assert whole == {FLOORS[scenes.floor[i]], TIMES[scenes.time[i]]}


def test_the_vocabulary_is_closed_and_used():
    scenes = random_scenes(3000, generator_of("tests", 10))
    captions = random_captions(scenes, generator_of("tests", 11))
    captions += [plain_caption(scenes, i) for i in range(len(scenes))]
    spoken = [split_words(text) for text in captions]
    assert {word for words in spoken for word in words} == set(VOCABULARY[3:])
    assert len(set(VOCABULARY)) == len(VOCABULARY)
    assert max(map(len, spoken)) + 2 <= MAX_LENGTH
    for text in captions:
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text)


def test_some_captions_are_empty():
    scenes = random_scenes(2000, generator_of("tests", 12))
    captions = random_captions(scenes, generator_of("tests", 13), dropout=0.12)
    share = sum(text == "" for text in captions) / 2000
    assert abs(share - 0.12) < 5 * math.sqrt(0.12 * 0.88 / 2000)
    assert captions == random_captions(scenes, generator_of("tests", 13), dropout=0.12)
