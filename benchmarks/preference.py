"""Tuned weights for the positive, the negative and both: `python dev.py bench preference`.

Two adapters of each demo model were tuned to a liked and a disliked colour and material
(demo/training/tune.py). Here prompts name neither.
"""

import random
from functools import partial

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..demo import measures
from ..demo.world import models
from ..demo.world.adapters import TASTES
from ..demo.world.captions import random_caption
from ..demo.world.judge import Found
from ..demo.world.scenes import COLOURS, MATERIALS
from ..nodes.host.models.second_model import separated
from ..nodes.host.weights.read import read_tuned
from ..nodes.preference_cfg import MIXTURE, PreferenceCFG
from ..nodes.preference_lora_loader import NEGATIVE, POSITIVE, PreferenceLoraLoader
from . import FAMILIES
from ._demo import SOLIDS, Demo, count_evaluations, drawn_like, found_in, measure_scale
from ._nodes import run_node
from ._table import print_row
from ._timing import medians

COUNT, STEPS, CFG = 200, 20, 3.0
LITTLE = 0.15
LIKED, DISLIKED = (" ".join(TASTES[taste]) for taste in ("liked", "disliked"))
RANKS = (0, 64, 32, 16, 4, 1)


def load(model: ModelPatcher, say: str, strength: float = 1.0, **settings) -> ModelPatcher:
    return run_node(PreferenceLoraLoader, model=model, file=f"demo: {say}", strength=strength, **settings)


def methods(model: ModelPatcher) -> dict[str, ModelPatcher]:
    liked, disliked = load(model, "liked"), load(model, "disliked")
    little = load(model, "liked", LITTLE)
    return {
        "CFG": model,
        "liked 1, both": liked,
        "liked 0.5, both": load(model, "liked", 0.5),
        "liked 1, positive only": load(model, "liked", apply_to=POSITIVE),
        "disliked 1, negative only": load(model, "disliked", apply_to=NEGATIVE),
        "disliked 0.5, negative only": load(model, "disliked", 0.5, apply_to=NEGATIVE),
        "disliked -1, both": load(model, "disliked", -1.0),
        "liked 1 for the positive, disliked 1 for the negative": run_node(
            PreferenceCFG, model=liked, other_model=disliked
        ),
        f"liked {LITTLE}, both": little,
        f"liked {LITTLE} for the positive, disliked 1 for the negative": run_node(
            PreferenceCFG, model=little, other_model=disliked
        ),
        f"liked {LITTLE} for the positive, none for the negative": run_node(PreferenceCFG, model=little),
        "mixture: 0.4 of the model, 0.6 of liked": run_node(
            PreferenceCFG, model=model, mode=MIXTURE, other_model=liked
        ),
    }


class Rates:
    """A table of how often the colours and materials come, and how often the rest is what the prompt says."""

    def __init__(self, family: str, real: Tensor):
        self.family, self.real = family, real
        self.demo = Demo(family, COUNT, seed=9000, each=1)
        rng = random.Random(9000)
        self.demo.captions = [random_caption(self.demo.scenes, i, rng, ("colour", "material")) for i in range(COUNT)]

    def row(self, name: str, model: ModelPatcher, negative: str = "") -> None:
        model = model.clone()
        self.demo.negative = negative
        counted, scale = count_evaluations(model), measure_scale(model)
        found = found_in(self.demo.sample(model, CFG, STEPS))
        right = found.count == self.demo.scenes.count
        shares = (_share(share_of(found, taste)) for taste in ("liked", "disliked"))
        print_row(
            f"| {self.family} | {name} | {scale.mean:.2f} | {counted.count / COUNT:.0f} | {' | '.join(shares)} | "
            f"{_share(right)} | {measures.frechet(found.features, self.real):.1f} |"
        )


def share_of(found: Found, taste: str) -> Tensor:
    """The share of the solids in each image that have a taste's colour and material, [n]."""
    colour, material = TASTES[taste]
    there = found.shape >= 0
    has = there & (found.colour == COLOURS.index(colour)) & (found.material == MATERIALS.index(material))
    return has.sum(1) / there.sum(1).clamp(min=1)


def _share(values: Tensor) -> str:
    low, high = measures.bootstrap(100 * values.float())
    return f"{100 * values.float().mean():.1f} % ({low:.1f} to {high:.1f})"


def ranks() -> None:
    """An early state of the UNet, and the difference to the last one, kept in products of some rank."""
    print(
        "\nThe UNet after few steps of training, given its difference to the one after all: kept whole (rank 0) or in "
        f"products. Right: shape and colour of all solids of {COUNT // 2} images.\n\n"
        "| rank | relative error | numbers kept | right |\n"
        "|---|---|---|---|"
    )
    demo, early = Demo("unet", COUNT // 2, seed=9000, each=1), models.load("unet_early")[0]
    for rank in (None, *RANKS):
        model, error, kept = early.clone(), 1.0, 0
        if rank is not None:
            found = read_tuned(early, models.weights_file("unet"), rank)
            model.add_patches(found.patches, 1.0)
            told = [line.rpartition("error of ")[2] for line in found.report if "error of" in line]
            error = float(told[0].rstrip(".")) if told else 0.0
            kept = sum(_numbers(patch) for patch in found.patches.values())
        right = _share(found_in(demo.sample(model, CFG, 15)).right(demo.scenes, "shape", "colour"))
        name = "without" if rank is None else rank
        print_row(f"| {name} | {error:.4f} | {kept / 1e6:.2f} million | {right} |")


def _numbers(patch) -> int:
    tensors = patch[1] if isinstance(patch, tuple) else patch.weights
    return sum(t.numel() for t in tensors if isinstance(t, Tensor))


def costs(family: str) -> None:
    """Prints the time of a run of 10 steps for 8 images, relative to the LoRA merged for both prompts."""
    demo = Demo(family, 8)

    def fresh() -> ModelPatcher:
        """With weights of its own: the host would load them anew for every other LoRA that is on them."""
        return separated(demo.model)

    timed = {
        "merged, both": load(fresh(), "disliked"),
        "negative only, in the same call": load(fresh(), "disliked", apply_to=NEGATIVE),
        "negative only, on a copy of the weights": run_node(
            PreferenceCFG, model=fresh(), other_model=load(fresh(), "disliked")
        ),
        "no LoRA": fresh(),
    }
    times = medians({name: partial(demo.sample, model, CFG, 10) for name, model in timed.items()})
    for name, seconds in times.items():
        print_row(f"| {family} | {name} | {seconds / times['merged, both']:.2f} |")


def main() -> None:
    print(
        f"{COUNT} captions of {SOLIDS} solids that name neither colour nor material, euler, {STEPS} steps, cfg "
        f"{CFG:g}. Share of the solids that are liked ({LIKED}) and disliked ({DISLIKED}). Right: as many solids as "
        f"said. With "
        "95 % bootstrap intervals.\n\n"
        "| model | LoRA | omega_e | evaluations | liked | disliked | right | Fréchet |\n" + "|---" * 8 + "|"
    )
    with torch.inference_mode():
        real = found_in(drawn_like()).features
        for family in FAMILIES:
            table = Rates(family, real)
            for name, model in methods(table.demo.model).items():
                table.row(name, model)
            table.row(f'CFG, negative prompt "{DISLIKED}"', table.demo.model, DISLIKED)
    if "unet" in FAMILIES:
        ranks()
    print("\nTime of a run, beside the LoRA merged into the weights.\n\n| model | LoRA | time |\n|---|---|---|")
    for family in FAMILIES:
        costs(family)


if __name__ == "__main__":
    main()
