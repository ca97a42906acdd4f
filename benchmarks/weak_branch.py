"""Weak branches against CFG at equal evaluations and equal scale: `python dev.py bench weak_branch`."""

import torch
from comfy.model_patcher import ModelPatcher

from ..demo import measures, models, pictures
from ..demo.judge import load_judge
from ..nodes.autoguidance import Autoguidance
from ..nodes.pag import PAG
from ..nodes.seg import SEG
from ..nodes.slg import SLG
from . import FAMILIES
from ._demo import Demo, diversity, measure_scale
from ._nodes import run_node

COUNT = 100
BUDGET = 50  # network evaluations a picture; a weak branch counts as a whole one
CFG = 3.0
HEADER = (
    "| model | guidance | evaluations per step x steps | omega_e | shape | right shapes against CFG | colour | Fréchet "
    "| saturation | diversity |"
)


def methods(family: str, model: ModelPatcher) -> dict[str, ModelPatcher]:
    """Each node at its defaults."""
    found = {
        "PAG 3": run_node(PAG, model=model),
        "SEG 3, blur 10": run_node(SEG, model=model),
        "SLG 2.5": run_node(SLG, model=model),
        "autoguidance 1, dropout 0.1": run_node(Autoguidance, model=model),
    }
    if family == "unet":
        second = {"weakness": "second model", "weak_model": models.load("unet_early")[0]}
        found["autoguidance 1, early model"] = run_node(Autoguidance, model=model, **second)
    return found


class Table:
    def __init__(self, family: str, real: torch.Tensor):
        self.family, self.real, self.demo = family, real, Demo(family, COUNT)
        self.reference: torch.Tensor | None = None  # which pictures of CFG have the right shape

    def row(self, name: str, model: ModelPatcher, scale: float, per_step: int, steps: int) -> float:
        """Prints a row; returns omega_e."""
        model = model.clone()
        measured = measure_scale(model)
        images = self.demo.sample(model, scale, steps)
        judged, scenes = load_judge()(images), self.demo.scenes
        shape = (judged["shape"].argmax(1) == scenes.shape).float()
        colour = 100 * (judged["colour"].argmax(1) == scenes.colour).float().mean()
        if self.reference is None:
            self.reference, change = shape, ""
        else:
            low, high = measures.bootstrap(100 * (shape - self.reference))
            change = f"{low:+.0f} to {high:+.0f}"
        print(
            f"| {self.family} | {name} | {per_step} x {steps} | {measured.mean:.2f} | {100 * shape.mean():.0f} % "
            f"| {change} | {colour:.0f} % | {measures.frechet(judged['features'], self.real):.2f} "
            f"| {measures.saturation(images).mean():.3f} | {diversity(judged['features'], scenes):.2f} |",
            flush=True,
        )
        return measured.mean

    def fill(self) -> None:
        plain = self.demo.model
        self.row(f"CFG {CFG:g}", plain, CFG, 2, BUDGET // 2)
        self.row("none", plain, 1.0, 1, BUDGET)
        for name, model in methods(self.family, plain).items():
            self.row(f"{name}, no CFG", model, 1.0, 2, BUDGET // 2)
            scale = self.row(f"{name}, CFG {CFG:g}", model, CFG, 3, BUDGET // 3)
            self.row(f"CFG {scale:.2f}", plain, scale, 2, BUDGET // 2)


def main() -> None:
    print(
        f"{COUNT} captions, euler, {BUDGET} network evaluations a picture in every row, the same noise. omega_e: "
        "effective scale (sums over steps and pictures; none without a negative), and below each method plain CFG at "
        "the same. Right shapes against CFG: 95 % paired bootstrap interval of the change, in points.\n"
    )
    print(HEADER + "\n" + "|---" * HEADER.count(" | ") + "|---|")
    with torch.inference_mode():
        fresh = pictures.random_scenes(2000, torch.Generator().manual_seed(2))
        real = load_judge()(pictures.draw(fresh))["features"]
        for family in FAMILIES:
            Table(family, real).fill()


if __name__ == "__main__":
    main()
