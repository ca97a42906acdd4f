"""What a negative prompt inside attention (NASA, NAG) keeps out of images at cfg 1, and what it costs:
`python dev.py bench nasa`."""

import dataclasses
from dataclasses import dataclass
from functools import partial

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..demo import measures
from ..demo.world.judge import Found
from ..demo.world.scenes import COLOURS, FLOORS, SHAPES, Scenes
from ..demo.world.vocabulary import NAMES
from ..nodes.nasa import NASA
from . import FAMILIES
from ._demo import Demo, found_in
from ._nodes import run_node
from ._quality import asked
from ._table import print_row
from ._timing import medians

COUNT, STEPS = 200, 25


@dataclass(frozen=True)
class Open:
    """Captions of one solid that leave a property open, and a negative prompt that names one of its values."""

    what: str  # a field of Found
    answer: int
    negative: str
    named: tuple[str, ...]  # what the captions do name

    def caption(self, scenes: Scenes, i: int) -> str:
        shape, floor = SHAPES[scenes.shape[i, 0]], NAMES[FLOORS[scenes.floor[i]]][0]
        return _coloured(scenes, i) if self.what == "floor" else f"a {shape} {floor}"

    def has(self, found: Found) -> Tensor:
        """Which images show the named value, 0 or 1, [n]."""
        shown = getattr(found, self.what)
        return ((shown if shown.ndim == 1 else shown[:, 0]) == self.answer).float()


def _coloured(scenes: Scenes, i: int) -> str:
    colour = COLOURS[scenes.colour[i, 0]]
    return f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {SHAPES[scenes.shape[i, 0]]}"


CASES = [
    Open("floor", FLOORS.index("tiles"), "on tiles", ("shape", "colour")),
    Open("colour", COLOURS.index("red"), "red", ("shape",)),
]


def methods(demo: Demo, negative: list) -> dict[str, ModelPatcher]:
    def node(**settings) -> ModelPatcher:
        return run_node(NASA, model=demo.model, negative=negative, **settings)

    return {
        "NASA, alpha 0.2": node(method="NASA", nasa_alpha=0.2),
        "NASA, alpha 0.5": node(method="NASA"),
        "NASA, alpha 1": node(method="NASA", nasa_alpha=1.0),
        "NAG": node(method="NAG"),
        "NAG, nag_scale 11, nag_alpha 0.5": node(method="NAG", nag_scale=11.0, nag_alpha=0.5),
    }


def _percent(share: Tensor) -> str:
    low, high = measures.bootstrap(100 * share)
    return f"{100 * share.mean():+.1f} ({low:+.1f} to {high:+.1f})"


def _table(family: str, case: Open) -> None:
    demo = Demo(family, COUNT, seed=7000, solids=1, each=1)
    demo = demo.asking([case.caption(demo.scenes, i) for i in range(COUNT)], demo.seed)

    def look(model: ModelPatcher, cfg: float, steps: int) -> tuple[Tensor, Tensor]:
        found = found_in(demo.sample(model, cfg, steps=steps))
        return case.has(found), found.right(demo.scenes, *case.named).float()

    def row(name: str, steps: int, evaluations: int, found: tuple[Tensor, Tensor]) -> None:
        has, rest = found
        print_row(
            f"| {family} | {case.negative} | {name} | {steps} | {evaluations} | {100 * has.mean():.1f} % "
            f"| {_percent(has - none[0])} | {_percent(has - cfg[0])} | {100 * rest.mean():.1f} % |"
        )

    none = look(demo.model, 1.0, STEPS)
    demo.negative = case.negative
    half = (STEPS + 1) // 2
    cfg = look(demo.model, 3.0, half)
    row("none", STEPS, STEPS, none)
    row("CFG 3", half, 2 * half, cfg)
    row("CFG 3", STEPS, 2 * STEPS, look(demo.model, 3.0, STEPS))
    for name, model in methods(demo, demo.encode([case.negative])).items():
        row(name, STEPS, STEPS, look(model, 1.0, STEPS))


def _source(family: str) -> None:
    """Where a model takes the colour from: attention uses the tokens only."""
    demo = Demo(family, 50, seed=7000, solids=1, each=1)
    scenes = demo.scenes
    other = dataclasses.replace(scenes, colour=(scenes.colour + 2) % len(COLOURS))
    [[tokens, _]], [[_, others]] = (demo.encode([_coloured(s, i) for i in range(50)]) for s in (scenes, other))
    demo.encode = lambda captions: [[tokens, others]]
    found = found_in(demo.sample(demo.model, 1.0)).colour[:, 0]
    shares = (100 * (found == s.colour[:, 0]).float().mean() for s in (scenes, other))
    print_row(f"| {family} | " + " | ".join(f"{share:.0f} %" for share in shares) + " |")


def _cost(family: str) -> None:
    demo = Demo(family, 8, seed=7000)
    found = methods(demo, demo.encode([CASES[0].negative]))
    runs = {"none": (demo.model, 1.0), "CFG": (demo.model, 3.0)}
    runs |= {name: (found[name], 1.0) for name in ("NASA, alpha 0.5", "NAG")}
    times = medians({name: partial(demo.sample, *run, steps=10) for name, run in runs.items()})
    shares = " | ".join(f"{seconds / times['none']:.2f}" for seconds in times.values())
    print_row(f"| {family} | {shares} |")


def removal(families: list[str]) -> None:
    print(
        f"Negative prompts inside attention: {COUNT} captions of one solid that leave one thing open, euler, cfg "
        f"1, the "
        "same noise. Change in points, with its 95 % bootstrap interval. Rest: what the caption names is right.\n"
    )
    print(
        "| model | negative prompt | method | steps | evaluations | has it | against none "
        "| against CFG, same evaluations | rest |\n" + "|---" * 9 + "|"
    )
    for family in families:
        for case in CASES:
            if asked(case.negative):
                _table(family, case)
    if not asked("cost"):
        return
    print("\nA prompt whose pooled text is that of another colour: colours drawn.\n")
    print("| model | of the tokens | of the pooled text |\n|---|---|---|")
    for family in families:
        _source(family)
    print("\nTime of a run beside one without a negative prompt, 8 images, 10 steps:\n")
    print("| model | none | CFG | NASA | NAG |\n|---|---|---|---|---|")
    for family in families:
        _cost(family)


def main() -> None:
    with torch.inference_mode():
        removal(FAMILIES)


if __name__ == "__main__":
    main()
