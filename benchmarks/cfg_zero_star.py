"""CFG-Zero* against CFG, its two parts, and core's node: `python dev.py bench cfg_zero_star`."""

import torch
from comfy_extras.nodes_cfg import CFGZeroStar as CoreCFGZeroStar

from ..nodes.cfg_zero_star import CFGZeroStar
from . import FAMILIES
from ._nodes import run_node
from ._quality import MEANING, Table, asked, print_header

COUNT = 120
SCALES = (3.0, 8.0)
SETTINGS = {
    "CFG-Zero*": {},
    "scale alone": {"zero_init": 0.0},
    "zero-init alone": {"optimized_scale": False},
}


def fill(family: str, scale: float) -> None:
    table = Table(family, COUNT)
    plain = table.demo.model
    table.row(f"CFG {scale:g}", plain, scale)
    for label, settings in SETTINGS.items():
        if asked(label):
            equal = table.row(f"{label}, cfg {scale:g}", run_node(CFGZeroStar, model=plain, **settings), scale)
            if label == "scale alone":
                table.row(f"CFG {equal:.2f}", plain, equal)
    if asked("core"):
        table.row(f"core's CFGZeroStar, cfg {scale:g}", CoreCFGZeroStar.execute(plain).result[0], scale)


def main() -> None:
    print(f"{COUNT} images, euler, 25 steps. omega_e without the steps that stand still. {MEANING}\n")
    print_header()
    with torch.inference_mode():
        for family in FAMILIES:
            for scale in SCALES:
                fill(family, scale)


if __name__ == "__main__":
    main()
