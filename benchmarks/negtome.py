"""How different the images of a batch are with NegToMe: `python dev.py bench negtome`."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..demo import measures
from ..nodes.host.attention.output import AttentionOutput, change_attention_output
from ..nodes.host.network.block_selection import usually_merged
from ..nodes.host.run import KEY
from ..nodes.negtome import GIVEN, NegToMe
from . import FAMILIES
from ._demo import SOLIDS, Demo, drawn, drawn_like, found_in
from ._nodes import run_node
from ._table import print_row

PROMPTS, EACH = 25, 8  # a batch of images for each prompt
CFG = 3.0
HEADER = (
    "| model | NegToMe | distance within a batch | change | all solids | all words | Fréchet (interval of its "
    "change) | saturation |"
)


def methods(model: ModelPatcher) -> dict[str, ModelPatcher]:
    def node(**settings) -> ModelPatcher:
        return run_node(NegToMe, model=model, **settings)

    return {
        "defaults": node(),
        "alpha 1.9": node(alpha=1.9),
        "previous image": node(reference="previous image"),
        "all other images": node(reference="all other images"),
        "whole run, all other images, threshold 0": node(
            steps="start to end", reference="all other images", threshold=0.0
        ),
        "matching official": node(matching="official"),
    }


def within(features: Tensor) -> Tensor:
    """Mean distance between the images of each batch, [prompts]."""
    batches = features.unflatten(0, (-1, EACH))
    distance = torch.cdist(batches, batches)
    return distance.sum((1, 2)) / (EACH * (EACH - 1))


def frechet_change(features: Tensor, plain: Tensor, real: Tensor, rounds: int = 100) -> tuple[float, float]:
    """95 % interval of the difference of two Fréchet distances, over prompts."""
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (f.unflatten(0, (-1, EACH)) for f in (features, plain))
    changes = []
    for _ in range(rounds):
        pick = torch.randint(len(ours), (len(ours),), generator=generator)
        after, before = (measures.frechet(f[pick].flatten(0, 1), real) for f in (ours, theirs))
        changes.append(after - before)
    low, high = torch.tensor(changes).quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high


class Table:
    def __init__(self, family: str, real: Tensor):
        self.family, self.real, self.demo = family, real, Demo(family, PROMPTS * EACH, each=EACH)
        self.plain: Tensor | None = None

    def row(self, name: str, model: ModelPatcher) -> None:
        images = self.demo.sample(model, CFG, batch=EACH)
        found, scenes = found_in(images), self.demo.scenes
        both = found.right(scenes, "shape", "colour").float().mean()
        words = found.right(scenes, "shape", "colour", "material", "extent").float().mean()
        features = found.features
        if self.plain is None:
            self.plain = features
        before, after = within(self.plain), within(features)
        low, high = measures.bootstrap(100 * (after - before) / before.mean())
        change = 100 * (after.mean() / before.mean() - 1)
        worse = frechet_change(features, self.plain, self.real)
        print_row(
            f"| {self.family} | {name} | {after.mean():.2f} | {change:+.1f} % ({low:+.1f} to {high:+.1f}) "
            f"| {100 * both:.1f} % | {100 * words:.1f} % "
            f"| {measures.frechet(features, self.real):.2f} ({worse[0]:+.2f} to {worse[1]:+.2f}) "
            f"| {measures.saturation(images).mean():.3f} |"
        )

    def fill(self) -> None:
        self.row("none", self.demo.model)
        for name, model in methods(self.demo.model).items():
            self.row(name, model)


@dataclass(eq=False)
class _Pushes:
    """How far a technique moves tokens: of those that it is shown while it acts, the share that moves, and the length
    of the moves beside that of the tokens."""

    technique: Callable[[AttentionOutput], Tensor]
    moved: list[float] = field(default_factory=list)
    length: list[float] = field(default_factory=list)

    label, idle_reason = "pushes", "never"

    def __call__(self, a: AttentionOutput) -> Tensor:
        tokens = self.technique(a)
        if tokens is not a.tokens:
            before, after = a.tokens[:, 1:], tokens[:, 1:]  # the first image stays
            self.moved.append((before != after).any(-1).float().mean().item())
            self.length.append(((after - before).norm() / before.norm()).item())
        return tokens


def pushes(family: str) -> None:
    """One batch with the defaults."""
    demo = Demo(family, 1, each=1)
    demo = demo.asking(demo.captions * EACH, demo.seed)
    [technique] = run_node(NegToMe, model=demo.model).model_options[KEY]["attention output"]
    seen, model = _Pushes(technique), demo.model.clone()
    change_attention_output(model, usually_merged(model), seen)
    demo.sample(model, CFG, batch=EACH)
    moved, length = (sum(part) / len(part) for part in (seen.moved, seen.length))
    print_row(f"| {family} | {100 * moved:.0f} % | {length:.2f} |")


def given(family: str) -> None:
    """How like a given drawn image the images for its caption become."""
    demo = Demo(family, PROMPTS, seed=5000, each=1)
    given = drawn(demo.scenes)
    latents = demo.encode_images(given)
    wanted = found_in(given).features
    rows = {
        "none": None,
        "alpha 0.9": {},
        "alpha 1.9": {"alpha": 1.9},
        "alpha -0.5": {"alpha": -0.5},
        "alpha 0.9, clean, scaled down": {"reference_noise": "clean, scaled down"},
        "alpha 0.9, noised to the step": {"reference_noise": "noised to the step"},
    }
    reference = None
    for name, settings in rows.items():
        found = []
        for i in range(PROMPTS):
            model = demo.model
            if settings is not None:
                latent = {"samples": latents[i : i + 1]}
                model = run_node(NegToMe, model=model, reference=GIVEN, latent=latent, **settings)
            one = demo.asking([demo.captions[i]] * EACH, 6000 + i)
            found.append(found_in(one.sample(model, CFG, batch=EACH)).features)
        distance = torch.stack([(f - w).norm(dim=1).mean() for f, w in zip(found, wanted)])
        reference = distance if reference is None else reference
        low, high = measures.bootstrap(100 * (distance - reference) / reference.mean())
        print_row(f"| {family} | {name} | {distance.mean():.2f} | {low:+.1f} % to {high:+.1f} % |")


def main() -> None:
    print(
        f"{PROMPTS} captions of {SOLIDS} solids, {EACH} images of each in one batch, euler, 25 steps, cfg {CFG:g}, "
        f"the "
        "same noise. Distance: mean over pairs of a batch in the judge's feature space, with the 95 % bootstrap "
        "interval of its "
        "change over prompts.\n"
    )
    print(HEADER + "\n" + "|---" * 8 + "|")
    with torch.inference_mode():
        real = found_in(drawn_like()).features
        for family in FAMILIES:
            Table(family, real).fill()
        print("\nWith the defaults, in the layers and steps in which it acts, for one prompt:\n")
        print("| model | tokens that move | length of the move beside the token's |\n|---|---|---|")
        for family in FAMILIES:
            pushes(family)
        print("\nReference latent: mean distance to the drawn image given, for images of its caption.\n")
        print("| model | NegToMe | distance to the image | change |\n|---|---|---|---|")
        for family in FAMILIES:
            given(family)


if __name__ == "__main__":
    main()
