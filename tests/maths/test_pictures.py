"""The demo models' world: what is drawn is what the scene says, found again by geometry that the drawing does not use.

The object is told from its background by chroma alone (backgrounds are nearly grey); its shape by moments, which need
no outline and no knowledge of where, how large or how turned it was drawn.
"""

import colorsys
import itertools
import math
import re

import numpy as np
import pytest
import torch

from guidekit.demo import pictures
from guidekit.demo.pictures import (
    BACKGROUNDS,
    COLOURS,
    EXTENTS,
    HUES,
    POSITIONS,
    SHAPES,
    SIZE,
    SYNONYMS,
    Scenes,
    caption,
    draw,
    random_captions,
    random_scenes,
)
from guidekit.demo.vocabulary import END, MAX_LENGTH, PAD, START, VOCABULARY

COUNT = 200
AXIS = (np.arange(SIZE) + 0.5) * (2 / SIZE) - 1


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scenes_of(**classes: str) -> Scenes:
    """Random scenes, some of their classes given by name."""
    scenes = random_scenes(COUNT, generator(7))
    names = {"shape": SHAPES, "colour": COLOURS, "background": BACKGROUNDS, "extent": EXTENTS, "position": POSITIONS}
    fixed = {key: torch.full((COUNT,), names[key].index(name)) for key, name in classes.items()}
    return scenes._replace(**fixed)


def objects(scenes: Scenes) -> np.ndarray:
    """How much of each pixel is object, [n, SIZE, SIZE]: its chroma as a share of the object's own."""
    drawn = draw(scenes).double().numpy()
    chroma = drawn.max(1) - drawn.min(1)
    chroma = np.where(chroma > 0.1, chroma, 0)  # what is left is the slight cast of the backgrounds
    full = np.array([np.median(c[c > 0.3]) for c in chroma])
    return (chroma / full[:, None, None]).clip(0, 1)


def centroid(mask: np.ndarray) -> complex:
    """x + i y in half picture widths from the middle, y down."""
    return complex((mask * AXIS).sum(), (mask * AXIS[:, None]).sum()) / mask.sum()


def moment(mask: np.ndarray, order: int) -> float:
    """|mean z^n| / mean |z|^n about the centroid: large for n-fold symmetry, 0 for any other and for round things."""
    z = AXIS + 1j * AXIS[:, None] - centroid(mask)
    return abs((mask * z**order).sum()) / (mask * np.abs(z) ** order).sum()


def compactness(mask: np.ndarray) -> float:
    """area^2 / (2 pi moment of inertia): 1 for a disc, less for whatever reaches out or has a hole."""
    z = AXIS + 1j * AXIS[:, None] - centroid(mask)
    pixel = (2 / SIZE) ** 2
    return (mask.sum() * pixel) ** 2 / (2 * math.pi * (mask * np.abs(z) ** 2).sum() * pixel)


# The pictures


def test_well_inside_the_gamut():
    """Also where all that is random is at its end: guidance must have room to show that it saturates."""
    ends = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=10)))
    drawn = draw(random_scenes(len(ends), generator())._replace(jitter=ends))
    assert drawn.shape == (len(ends), 3, SIZE, SIZE)
    assert drawn.dtype == torch.float32
    assert drawn.min() > 0.05
    assert drawn.max() < 0.95


def test_all_randomness_comes_from_the_generator():
    before = torch.get_rng_state()
    first, again, other = (draw(random_scenes(20, generator(seed))) for seed in (1, 1, 2))
    texts = [random_captions(random_scenes(20, generator(1)), generator(seed)) for seed in (3, 3, 4)]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert texts[0] == texts[1] != texts[2]
    assert torch.equal(before, torch.get_rng_state())


def test_no_picture_sees_another():
    scenes = random_scenes(12, generator())
    together = draw(scenes)
    for i in range(12):
        assert torch.equal(draw(Scenes(*(t[i : i + 1] for t in scenes)))[0], together[i])


def test_scenes_are_uniform_and_independent():
    """Every pair of attributes, in all its combinations: within five standard deviations of equally likely."""
    n = 40_000
    scenes = random_scenes(n, generator())
    sizes = [len(names) for names in (SHAPES, COLOURS, BACKGROUNDS, EXTENTS, POSITIONS)]
    for (a, size_a), (b, size_b) in itertools.combinations(zip(scenes[:5], sizes), 2):
        counts = torch.bincount(a * size_b + b, minlength=size_a * size_b)
        p = 1 / (size_a * size_b)
        assert len(counts) == size_a * size_b
        assert (counts - n * p).abs().max() < 5 * math.sqrt(n * p * (1 - p))
    assert scenes.jitter.shape == (n, 10)
    assert -1 <= scenes.jitter.min() < -0.99
    assert 0.99 < scenes.jitter.max() <= 1


# What the scene says can be seen


@pytest.mark.parametrize("extent", EXTENTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_shape(shape, extent):
    """The hole of the ring, the symmetry of the others, and square from cross by how far it reaches out. In the middle,
    because elsewhere the edge of the picture cuts some large objects."""
    scenes = scenes_of(shape=shape, extent=extent, position="center")
    fold = {"triangle": 3, "square": 4, "cross": 4, "star": 5}.get(shape)
    for mask in objects(scenes):
        middle = centroid(mask)
        pixel = tuple(int((part + 1) * SIZE / 2) for part in (middle.imag, middle.real))
        assert (mask[pixel] < 0.5) == (shape == "ring")
        moments = {n: moment(mask, n) for n in (3, 4, 5)}
        if fold is None:
            assert max(moments.values()) < 0.1, moments
        else:
            assert max(moments, key=moments.get) == fold, moments
            assert moments[fold] > 0.12, moments
        if fold == 4:
            assert (compactness(mask) > 0.87) == (shape == "square")  # 3 / pi; a cross of this width has 0.78


@pytest.mark.parametrize("shape", SHAPES)
def test_areas(shape):
    """In squares of the nominal radius, from elementary geometry: no shape is much harder to see than another."""
    area = {
        "circle": math.pi * 0.95**2,
        "square": 4 * 0.84**2,
        "triangle": 3 * math.sqrt(3) * 0.52**2,  # equilateral, by its inscribed circle
        "star": 5 * 1.15 * 0.50 * math.sin(math.pi / 5),  # ten triangles between centre, tip and notch
        "ring": math.pi * (0.97**2 - 0.47**2),
        "cross": 2 * 2 * 0.6 - 0.6**2,
    }[shape]
    assert 1.2 < area < 3
    for extent, radius in (("small", 0.48), ("large", 0.70)):
        masks = objects(scenes_of(shape=shape, extent=extent, position="center"))
        found = masks.sum((1, 2)).mean() * (2 / SIZE) ** 2 / radius**2
        assert found == pytest.approx(area, rel=0.08), extent


@pytest.mark.parametrize("shape", SHAPES)
def test_extent(shape):
    """Not one small object is larger than a large one of its shape."""
    small, large = (objects(scenes_of(shape=shape, extent=extent)).sum((1, 2)) for extent in EXTENTS)
    assert small.max() * 1.2 < large.min()


@pytest.mark.parametrize("position", POSITIONS)
def test_position(position):
    """The centroid is on the side that the caption names, whatever the shape and size."""
    direction = {"left": -1, "right": 1, "top": -1j, "bottom": 1j}.get(position)
    for mask in objects(scenes_of(position=position)):
        middle = centroid(mask)
        if direction is None:
            assert abs(middle) < 0.12
        else:
            assert 0.2 < (middle / direction).real < 0.45
            assert abs((middle / direction).imag) < 0.1


@pytest.mark.parametrize("colour", COLOURS)
def test_colour(colour):
    """The mean colour of the object is nearest, by the standard library's hue, to the colour that people call so."""
    common = {"red": 0, "yellow": 60, "green": 120, "cyan": 180, "blue": 240, "purple": 300}
    scenes = scenes_of(colour=colour)
    drawn = draw(scenes).double().numpy()
    for picture, mask in zip(drawn, objects(scenes)):
        inside = mask > 0.95
        hue, saturation, value = colorsys.rgb_to_hsv(*picture[:, inside].mean(1))
        gaps = {name: abs((hue * 360 - angle + 180) % 360 - 180) for name, angle in common.items()}
        assert min(gaps, key=gaps.get) == colour
        assert 0.5 < saturation < 0.8
        assert 0.6 < value < 0.9


def test_colours_are_told_apart():
    gaps = [min((a - b) % 1, (b - a) % 1) for a, b in itertools.combinations(HUES, 2)]
    assert min(gaps) > 0.1  # the hue of a picture varies by 0.02 about each


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_background(background):
    """Plain, the same along one diagonal, or turned into its opposite by half a period in x or y."""
    scenes = scenes_of(background=background, extent="small", position="center")
    drawn = draw(scenes)
    grey = drawn.mean(1)
    covered = torch.nn.functional.max_pool2d(torch.from_numpy(objects(scenes))[:, None], 5, 1, 2)[:, 0]
    free = covered == 0  # also of the faint edge and tips of the object

    def difference(down: int, right: int) -> torch.Tensor:
        """Largest change of the background under a shift, per picture, where both pixels are background."""
        shifted, both = grey.roll((down, right), (1, 2)), free & free.roll((down, right), (1, 2))
        return ((grey - shifted).abs() * both)[:, 4:-4, 4:-4].amax((1, 2))

    level = (grey * free).sum((1, 2)) / free.sum((1, 2))
    contrast = torch.stack([g[f].std() for g, f in zip(grey, free)])
    if background in ("dark", "light"):
        assert contrast.max() < 0.01
        assert (level < 0.25).all() if background == "dark" else (level > 0.75).all()
        return
    assert (contrast > 0.05).all()
    assert ((level > 0.3) & (level < 0.6)).all()
    half = SIZE // 8  # pixels: a quarter of the picture is a period
    if background == "striped":
        assert difference(1, -1).max() < 1e-5
        assert (difference(1, 1) > 0.1).all()
    else:
        assert difference(half, half).max() < 1e-5
        assert (difference(half, 0) > 0.1).all()
        assert (difference(0, half) > 0.1).all()
        assert (difference(1, -1) > 0.1).all()


# Captions


def tokens(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text)


def test_caption_in_full():
    scenes = Scenes(*(torch.tensor([i]) for i in (0, 0, 0, 1, 0)), torch.zeros(1, 10))
    assert caption(scenes, 0) == "a large red circle on a dark background, left"
    assert caption(scenes, 0, (False, False, False)) == "a red circle"
    assert caption(scenes, 0, (True, False, True)) == "a large red circle, left"
    assert caption(scenes, 0, synonym=1) == "a big red disc on a dark background, left"


def test_captions_use_the_vocabulary_and_all_of_it():
    """A word without pictures would have a random embedding, a picture's word without an embedding would be ignored."""
    texts = random_captions(random_scenes(5000, generator(1)), generator(2))
    spoken = {token for text in texts for token in tokens(text)}
    special = {VOCABULARY[i] for i in (PAD, START, END)}
    assert spoken == set(VOCABULARY) - special
    assert len(special) == 3
    assert len(set(VOCABULARY)) == len(VOCABULARY)
    assert max(len(tokens(text)) for text in texts) + 2 <= MAX_LENGTH


def test_captions_are_true():
    """Every word that names a class names the scene's; shape and colour are always said, the rest at times."""
    scenes = random_scenes(3000, generator(1))
    texts = random_captions(scenes, generator(2))
    groups = {"shape": SHAPES, "colour": COLOURS, "background": BACKGROUNDS, "extent": EXTENTS, "position": POSITIONS}
    means = {
        word: (group, i)
        for group, names in groups.items()
        for i, name in enumerate(names)
        for word in SYNONYMS.get(name, (name,))
    }
    said = dict.fromkeys(groups, 0)
    for i, text in enumerate(texts):
        found = [means[token] for token in tokens(text) if token in means]
        assert len({group for group, _ in found}) == len(found)
        for group, index in found:
            assert getattr(scenes, group)[i] == index, text
            said[group] += 1
    assert said["shape"] == said["colour"] == len(texts)
    assert all(0.5 < said[group] / len(texts) < 0.9 for group in ("background", "extent", "position"))


@pytest.mark.parametrize("dropout", [0.0, 0.12, 0.5, 1.0])
def test_dropout(dropout):
    n = 20_000
    texts = random_captions(random_scenes(n, generator(1)), generator(2), dropout)
    empty = sum(text == "" for text in texts)
    assert abs(empty - n * dropout) <= 4 * math.sqrt(n * dropout * (1 - dropout))


def test_tables_match():
    """One hue, one centre, one radius, one outline for each word that is drawn."""
    assert len(HUES) == len(COLOURS)
    assert len(pictures._CENTRES) == len(POSITIONS)
    assert len(pictures._RADII) == len(EXTENTS)
    assert len(pictures._DISTANCES) == len(SHAPES)
    assert set(SYNONYMS) <= {*SHAPES, *COLOURS, *BACKGROUNDS, *EXTENTS, *POSITIONS}
    assert all(words[0] == name for name, words in SYNONYMS.items())
