"""The effect of an edited concept on its images and on those of other words: `python dev.py bench concept_edit`;
`python dev.py python -m guidekit.benchmarks.concept_edit unet none "+ blue, kept"` for some rows of one model, and `...
unet debias` for the loop over ratios.
"""

import sys
from dataclasses import dataclass

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..demo import measures
from ..demo.world.judge import Found
from ..demo.world.scenes import COLOURS, MATERIALS, SHAPES
from ..nodes.concept_edit import ConceptEdit
from . import FAMILIES, KNOWN_FAMILIES
from ._demo import Demo, found_in
from ._nodes import run_node
from ._table import print_row


def _with_article(colour: str) -> str:
    return f"{'an' if colour[0] in 'aeiou' else 'a'} {colour}"


COUNT, STEPS, CFG = 48, 15, 3.0
BALL, BLUE = SHAPES.index("ball"), COLOURS.index("blue")
OTHERS = [shape for shape in SHAPES if shape != "ball"]
KEEP = "\n".join(f"a {shape}" for shape in OTHERS)
NAMED = [colour for colour in COLOURS if colour != "blue"]
KEEP_NAMED = "\n".join([KEEP, *(f"{_with_article(colour)} ball" for colour in NAMED)])
PLACES = ("on wood by day", "on tiles at sunset", "on grass at night", "on sand by day")
ROWS = {
    "none": None,
    "+ blue, kept": {"edits": "a ball -> + blue", "keep": KEEP},
    "+ blue": {"edits": "a ball -> + blue"},
    "+ blue, named kept": {"edits": "a ball -> + blue", "keep": KEEP_NAMED},
    "+ 0.7 blue, kept": {"edits": "a ball -> + 0.7 blue", "keep": KEEP},
    "+ 0.5 blue, kept": {"edits": "a ball -> + 0.5 blue", "keep": KEEP},
    "UCE, kept": {"edits": "a ball -> a blue ball", "keep": KEEP},
    "TIME, kept": {"edits": "a ball -> a blue ball", "keep": KEEP, "method": "TIME", "expand": "off"},
}
# For the loop over ratios: all materials equally often.
CONCEPT, ROUNDS, STEP = "a cube", 8, 1.0


@dataclass(frozen=True)
class Prompts:
    """Prompts of one kind, and the properties of their solids."""

    texts: list[str]
    shapes: Tensor

    def right(self, found: Found) -> Tensor:
        return (found.shape[:, 0] == self.shapes).float()


def prompts_of(count: int) -> dict[str, Prompts]:
    places = [PLACES[i % len(PLACES)] for i in range(count)]
    balls = torch.full((count,), BALL)
    others = [OTHERS[i // len(PLACES) % len(OTHERS)] for i in range(count)]
    return {
        "plain": Prompts([f"a ball {place}" for place in places], balls),
        "named": Prompts([f"{_with_article(NAMED[i % len(NAMED)])} ball {p}" for i, p in enumerate(places)], balls),
        "others": Prompts(
            [f"a {shape} {place}" for shape, place in zip(others, places)],
            torch.tensor([SHAPES.index(shape) for shape in others]),
        ),
    }


class Looks:
    """The same prompts and noise, with the model edited in various ways."""

    def __init__(self, family: str) -> None:
        self.family, self.prompts = family, prompts_of(COUNT)
        self.demo = Demo(family, COUNT, seed=13_000, solids=1, each=1)
        self.wanted = torch.tensor([COLOURS.index(text.split()[1]) for text in self.prompts["named"].texts])
        self.before: Found | None = None

    def found(self, model: ModelPatcher, kind: str) -> Found:
        return found_in(self.demo.asking(self.prompts[kind].texts, 13_000).sample(model, CFG, STEPS))

    def row(self, name: str, settings: dict | None) -> None:
        model, rank = self.demo.model, "-"
        if settings is not None:
            model = run_node(ConceptEdit, model=model, clip=self.demo.clip, **settings)
            rank = str(len(next(iter(model.patches.values()))[0][1].weights[1]))
        plain, named, others = (self.found(model, kind) for kind in self.prompts)
        if settings is None:
            self.before = others
        self.before = self.before or self.found(self.demo.model, "others")
        shares = [torch.bincount(each.colour[:, 0] + 1, minlength=len(COLOURS) + 1) for each in (self.before, others)]
        moved = 100 * (shares[1] - shares[0]).abs().max() / COUNT
        right = [prompts.right(each).mean() for prompts, each in zip(self.prompts.values(), (plain, named, others))]
        print_row(
            f"| {self.family} | {name} | {rank} | {_percent((plain.colour[:, 0] == BLUE).float())} "
            f"| {_percent((named.colour[:, 0] == self.wanted).float())} "
            f"| {_percent((others.colour[:, 0] == BLUE).float())} | {moved:.0f} points "
            f"| {' / '.join(f'{100 * share:.0f}' for share in right)} % |"
        )


def debias(family: str) -> None:
    """UCE's loop: the numbers of attributes are raised in proportion to what is missing of their ratio (UCE: a tenth of
    it, in 30 rounds), and the edit is made anew."""
    demo, amounts = Demo(family, COUNT, seed=14_000, solids=1, each=1), dict.fromkeys(MATERIALS, 0.0)
    demo = demo.asking([f"{CONCEPT} {PLACES[i % len(PLACES)]}" for i in range(COUNT)], 14_000)
    for turn in range(ROUNDS):
        lean = " ".join(f"{'+' if amount >= 0 else '-'} {abs(amount):.3f} {name}" for name, amount in amounts.items())
        keep = "\n".join(f"a {shape}" for shape in SHAPES if shape not in CONCEPT)
        model = demo.model
        if turn:  # before it nothing is added, and an edit that changes nothing is refused
            model = run_node(ConceptEdit, model=model, clip=demo.clip, edits=f"{CONCEPT} -> {lean}", keep=keep)
        found = found_in(demo.sample(model, CFG, STEPS))
        counts = torch.bincount(found.material[:, 0] + 1, minlength=len(MATERIALS) + 1)[1:]
        shares = dict(zip(MATERIALS, (counts / counts.sum().clamp(min=1)).tolist()))
        cubes = 100 * (found.shape[:, 0] == SHAPES.index("cube")).float().mean()
        cells = " | ".join(f"{amounts[name]:+.2f} | {100 * shares[name]:.0f} %" for name in MATERIALS)
        print_row(f"| {family} | {turn} | {cells} | {cubes:.0f} % |")
        for name in MATERIALS:
            amounts[name] += STEP * (1 / len(MATERIALS) - shares[name])


def _percent(hits: Tensor) -> str:
    low, high = measures.bootstrap(100 * hits)
    return f"{100 * hits.mean():.1f} % ({low:.1f} to {high:.1f})"


def edits(families: list[str], wanted: list[str]) -> None:
    print(
        f"Concept Edit: a ball is to be blue where its prompt says nothing else; {COUNT} prompts of each kind, euler, "
        f"{STEPS} steps, cfg {CFG:g}, the same noise. Moved: of the colours of other solids the one whose share "
        "changed most. Right: the shape, of plain balls, balls of a named colour, and others. 95 % bootstrap "
        "intervals.\n"
    )
    print(
        "| model | edit | rank | plain balls that are blue | named colours obeyed | others that are blue | moved "
        "| right |\n" + "|---" * 8 + "|"
    )
    for family in families:
        looks = Looks(family)
        for name in wanted or ROWS:
            looks.row(name, ROWS[name])


def ratios(families: list[str]) -> None:
    heads = " | ".join(f"{name} added | {name}" for name in MATERIALS)
    print(
        f"\nThe materials of {CONCEPT}: {COUNT} images in each round.\n\n| model | round | {heads} | cubes |\n"
        + "|---" * (3 + 2 * len(MATERIALS))
        + "|"
    )
    for family in families:
        debias(family)


def main() -> None:
    families = [name for name in FAMILIES if name in KNOWN_FAMILIES] or KNOWN_FAMILIES
    wanted = [name for name in sys.argv[1:] if name not in KNOWN_FAMILIES]
    with torch.inference_mode():
        if wanted != ["debias"]:
            edits(families, [name for name in wanted if name != "debias"])
        if not wanted or "debias" in wanted:
            ratios(families)


if __name__ == "__main__":
    main()
