"""Weak branches against CFG at equal evaluations and equal scale: `python dev.py bench weak_branch`."""

import torch
from comfy.model_patcher import ModelPatcher

from ..demo import measures, models
from ..demo.judge import load_judge
from ..nodes.autoguidance import Autoguidance
from ..nodes.pag import PAG
from ..nodes.seg import SEG
from ..nodes.slg import SLG
from . import FAMILIES
from ._demo import Demo, diversity, drawn_pictures, measure_scale
from ._nodes import run_node
from ._table import print_row

COUNT = 200
BUDGET = 50  # network evaluations a picture; a weak branch counts as a whole one
CFG = 3.0
HEADER = (
    "| model | guidance | evaluations per step x steps | omega_e | all right | change against CFG | shape | background "
    "| Fréchet | saturation | diversity |"
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
        self.reference: torch.Tensor | None = None  # which pictures of CFG show all they should

    def row(self, name: str, model: ModelPatcher, scale: float, per_step: int, steps: int) -> float:
        """Prints a row; returns omega_e."""
        model = model.clone()
        measured = measure_scale(model)
        images = self.demo.sample(model, scale, steps)
        judged, scenes = load_judge()(images), self.demo.scenes
        right = {k: (judged[k].argmax(1) == getattr(scenes, k)).float() for k in ("shape", "colour", "background")}
        everything = right["shape"] * right["colour"] * right["background"]
        if self.reference is None:
            self.reference, change = everything, ""
        else:
            low, high = measures.bootstrap(100 * (everything - self.reference))
            change = f"{low:+.1f} to {high:+.1f}"
        omega = "-" if measured.mean != measured.mean else f"{measured.mean:.2f}"  # NaN without a negative
        share = {k: f"{100 * v.mean():.1f} %" for k, v in {**right, "all": everything}.items()}
        print_row(
            f"| {self.family} | {name} | {per_step} x {steps} | {omega} | {share['all']} | {change} "
            f"| {share['shape']} | {share['background']} | {measures.frechet(judged['features'], self.real):.2f} "
            f"| {measures.saturation(images).mean():.3f} | {diversity(judged['features'], scenes):.2f} |"
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
        "the same. All right: shape, colour and background. Change against CFG: 95 % paired bootstrap interval, in "
        "points.\n"
    )
    print(HEADER + "\n" + "|---" * HEADER.count(" | ") + "|---|")
    with torch.inference_mode():
        real = load_judge()(drawn_pictures())["features"]
        for family in FAMILIES:
            Table(family, real).fill()


if __name__ == "__main__":
    main()
