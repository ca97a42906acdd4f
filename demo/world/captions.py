"""Scenes in plain English: a small grammar with paraphrases and omissions. Every caption is true."""

import random
import re
from collections.abc import Collection

import torch

from .scenes import COLOURS, EXTENTS, FLOORS, MATERIALS, SHAPES, TIMES, Scenes
from .vocabulary import GROUP, LEFT, NAMES, NEARER, ROW, THING, TOGETHER

NEARER_BY = 0.9  # world units: from this difference on, one solid is said to be in front of another

# How often something is said.
_SAID = {"extent": 0.6, "material": 0.6, "colour": 0.93, "shape": 0.95, "floor": 0.7, "time": 0.6}


def plain_caption(scenes: Scenes, i: int) -> str:
    """All there is to say of scene `i`, in the usual words and from left to right."""
    solids = [_solid(scenes, i, slot, None) for slot in range(int(scenes.count[i]))]
    phrase = ("{a}", LEFT[0], ROW[0])[len(solids) - 1]
    return " ".join([_fill(phrase, solids), NAMES[FLOORS[scenes.floor[i]]][0], NAMES[TIMES[scenes.time[i]]][0]])


def random_caption(scenes: Scenes, i: int, rng: random.Random, unsaid: Collection[str] = ()) -> str:
    """Scene `i` in words that chance chooses; `unsaid` attributes of solids ("colour", ...) are never named."""
    solids = [_solid(scenes, i, slot, rng, unsaid) for slot in range(int(scenes.count[i]))]
    text = _relate(scenes, i, solids, rng)
    for name, classes in (("floor", FLOORS), ("time", TIMES)):
        if rng.random() < _SAID[name]:
            text += " " + rng.choice(NAMES[classes[getattr(scenes, name)[i]]])
    return text


def random_captions(
    scenes: Scenes, generator: torch.Generator, dropout: float = 0.0, unsaid: Collection[str] = ()
) -> list[str]:
    """A caption for each scene; empty with probability `dropout`."""
    seed = torch.randint(2**62, (), generator=generator)
    rng = random.Random(int(seed))
    return ["" if rng.random() < dropout else random_caption(scenes, i, rng, unsaid) for i in range(len(scenes))]


def _solid(scenes: Scenes, i: int, slot: int, rng: random.Random | None, unsaid: Collection[str] = ()) -> str:
    words = []
    for name, classes in (("extent", EXTENTS), ("material", MATERIALS), ("colour", COLOURS), ("shape", SHAPES)):
        names = NAMES[classes[getattr(scenes, name)[i, slot]]]
        if rng is None:
            words.append(names[0])
        elif name not in unsaid and rng.random() < _SAID[name]:
            words.append(rng.choice(names))
        elif name == "shape":
            words.append(THING)
    return f"{'an' if words[0][0] in 'aeiou' else 'a'} {' '.join(words)}"


def _relate(scenes: Scenes, i: int, solids: list[str], rng: random.Random) -> str:
    if len(solids) == 1:
        return solids[0]
    if len(solids) == 3:
        if rng.random() < 0.7:
            return _fill(rng.choice(ROW), solids)
        return _fill(rng.choice(GROUP), rng.sample(solids, 3))
    chance, nearer = rng.random(), scenes.place[i, 1, 1] - scenes.place[i, 0, 1]
    if chance < 0.2 and nearer.abs() >= NEARER_BY:
        return _fill(rng.choice(NEARER), solids if nearer > 0 else solids[::-1])
    if chance < 0.75:
        return _fill(rng.choice(LEFT), solids)
    return _fill(rng.choice(TOGETHER), rng.sample(solids, 2))


def _fill(phrase: str, solids: list[str]) -> str:
    return phrase.format(**dict(zip("abc", solids)))


def split_words(text: str) -> list[str]:
    """The words and commas of a text, in small letters."""
    return re.findall(r"[^\W_]+|,", text.lower())
