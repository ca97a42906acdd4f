"""Weak branches against CFG at equal evaluations and equal scale: `python dev.py bench weak_branch`."""

import torch
from comfy.model_patcher import ModelPatcher

from ..demo.world import models
from ..nodes.autoguidance import Autoguidance
from ..nodes.pag import PAG
from ..nodes.seg import SEG
from ..nodes.slg import SLG
from . import FAMILIES
from ._nodes import run_node
from ._quality import MEANING, Table, print_header

COUNT = 240
BUDGET = 50  # network evaluations per image; a weak branch counts as a whole one
CFG = 3.0


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


def fill(family: str) -> None:
    table = Table(family, COUNT)
    plain = table.demo.model
    table.row(f"CFG {CFG:g}", plain, CFG, BUDGET // 2)
    table.row("none", plain, 1.0, BUDGET)
    for name, model in methods(family, plain).items():
        table.row(f"{name}, no CFG", model, 1.0, BUDGET // 2)
        scale = table.row(f"{name}, CFG {CFG:g}", model, CFG, BUDGET // 3)
        table.row(f"CFG {scale:.2f}", plain, scale, BUDGET // 2)


def main() -> None:
    print(f"{COUNT} images, euler, {BUDGET} network evaluations an image in every row. {MEANING}\n")
    print_header()
    with torch.inference_mode():
        for family in FAMILIES:
            fill(family)


if __name__ == "__main__":
    main()
