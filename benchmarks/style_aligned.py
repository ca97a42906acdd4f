"""Whether the images of a batch are in one style with shared attention, and still show what their prompts say:
`python dev.py bench style_aligned`; `python dev.py python -m guidekit.benchmarks.style_aligned unet none paper` for
some rows of one model.
"""

import sys
from collections.abc import Callable

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..demo import measures
from ..demo.world.judge import Found
from ..demo.world.scenes import COLOURS, SHAPES
from ..nodes.style_aligned import GIVEN, StyleAligned
from . import FAMILIES, KNOWN_FAMILIES
from ._demo import Demo, found_in
from ._nodes import run_node
from ._table import print_row

IMAGES, BATCHES, STEPS, CFG = 4, 12, 15, 3.0
OPEN = ("floor", "time", "material")  # which the captions do not mention


class Batches:
    """Batches of images of one solid each, in different shapes and colours, whose prompts leave the style open."""

    def __init__(self, family: str) -> None:
        self.demo = Demo(family, IMAGES * BATCHES, seed=12_000, solids=1, each=1)
        s = self.demo.scenes
        named = [f"{COLOURS[s.colour[i, 0]]} {SHAPES[s.shape[i, 0]]}" for i in range(len(s))]
        self.demo.captions = [f"{'an' if each[0] in 'aeiou' else 'a'} {each}" for each in named]

    def look(self, model: ModelPatcher) -> Found:
        return found_in(self.demo.sample(model, CFG, STEPS, batch=IMAGES))

    def after_the_first(self, **settings) -> Found:
        """The first image of each batch by itself, and the others with its latent as the reference."""
        done = []
        for start in range(0, len(self.demo.captions), IMAGES):
            alone = Some(self.demo, slice(start, start + 1))
            first = alone.sample(self.demo.model, CFG, STEPS)
            latent = {"samples": self.demo.encode_images(first)}
            model = run_node(StyleAligned, model=self.demo.model, reference=GIVEN, latent=latent, **settings)
            rest = Some(self.demo, slice(start + 1, start + IMAGES)).sample(model, CFG, STEPS)
            done += [first, rest]
        return found_in(torch.cat(done))


class Some(Demo):
    """Some of the captions of another `Demo`, with their noise."""

    def __init__(self, demo: Demo, which: slice) -> None:
        self.__dict__.update(demo.__dict__)
        self.whole, self.which, self.captions = demo, which, demo.captions[which]

    def noise(self) -> Tensor:
        return self.whole.noise()[self.which]


def spread(found: Found, name: str) -> Tensor:
    """The share of the pairs of images of a batch that differ, [batches]."""
    shown = getattr(found, name)
    shown = (shown if shown.ndim == 1 else shown[:, 0]).unflatten(0, (-1, IMAGES))
    differ = (shown[:, :, None] != shown[:, None]).float()
    return differ.sum((1, 2)) / (IMAGES * (IMAGES - 1))


def rows(family: str, batches: Batches) -> dict[str, Callable[[], Found]]:
    model = batches.demo.model

    def node(**settings) -> Callable[[], Found]:
        return lambda: batches.look(run_node(StyleAligned, model=model, **settings))

    found = {
        "none": lambda: batches.look(model),
        "paper": node(),
        "share 0.7": node(share=0.7),
        "share -1": node(share=-1.0),
        "share -2": node(share=-2.0),
        "no AdaIN": node(adain=False),
        "no AdaIN, share -1": node(adain=False, share=-1.0),
        "strength 0.5": node(strength=0.5),
        "strength 0.7": node(strength=0.7),
        "strength 0.7, share -1": node(strength=0.7, share=-1.0),
        "positive only": node(apply_to="positive only"),
        "reference latent": batches.after_the_first,
        "reference latent, share 0.7": lambda: batches.after_the_first(share=0.7),
    }
    if family == "dit":  # not its first blocks, in which text and image have weights of their own
        found["single blocks"] = node(blocks="single")
        found["single blocks, share -1"] = node(blocks="single", share=-1.0)
    return found


def _interval(values: Tensor) -> str:
    low, high = measures.bootstrap(100 * values.float())
    return f"{100 * values.float().mean():.1f} % ({low:.1f} to {high:.1f})"


def table(families: list[str], wanted: list[str]) -> None:
    print(
        f"{BATCHES} batches of {IMAGES} images, each with a prompt of its own that names a shape and a colour; euler, "
        f"{STEPS} steps, cfg {CFG:g}, the same noise. Differ: of the pairs of a batch those that show another floor, "
        "time of day or material. Right: shape and colour, and one solid. 95 % bootstrap intervals.\n"
    )
    print(
        "| model | StyleAligned | floors differ | times differ | materials differ | all three | right |\n"
        + "|---" * 7
        + "|"
    )
    for family in families:
        batches = Batches(family)
        for name, look in rows(family, batches).items():
            if wanted and name not in wanted:
                continue
            found = look()
            by_name = [spread(found, each) for each in OPEN]
            cells = [f"{100 * each.mean():.1f} %" for each in by_name]
            right = found.right(batches.demo.scenes, "shape", "colour")
            mean = _interval(torch.stack(by_name).mean(0))
            print_row(f"| {family} | {name} | {' | '.join(cells)} | {mean} | {_interval(right)} |")


def main() -> None:
    families = [name for name in FAMILIES if name in KNOWN_FAMILIES]
    with torch.inference_mode():
        table(families or KNOWN_FAMILIES, [name for name in sys.argv[1:] if name not in KNOWN_FAMILIES])


if __name__ == "__main__":
    main()
