"""Frequency guidance against CFG, and against CFG at the same effective scale: `python dev.py bench
frequency_guidance`."""

import torch

from ..nodes.frequency_guidance import RESIZE, FrequencyGuidance
from . import FAMILIES
from ._nodes import run_node
from ._quality import MEANING, Table, asked, print_header

COUNT = 120
SCALES = (3.0, 8.0)
SETTINGS = {
    "high 2": {},
    "high 4": {"high": 4.0},
    "low 0.5, high 1": {"high": 1.0, "low": 0.5},
    "high 2, resize": {"split": RESIZE},
}


def fill(family: str, scale: float) -> None:
    table = Table(family, COUNT)
    plain = table.demo.model
    table.row(f"CFG {scale:g}", plain, scale)
    for label, settings in SETTINGS.items():
        name = f"{label}, cfg {scale:g}"
        if asked(name):
            equal = table.row(name, run_node(FrequencyGuidance, model=plain, **settings), scale)
            table.row(f"CFG {equal:.2f}", plain, equal)


def main() -> None:
    print(f"{COUNT} images, euler, 25 steps. {MEANING}\n")
    print_header()
    with torch.inference_mode():
        for family in FAMILIES:
            for scale in SCALES:
                fill(family, scale)


if __name__ == "__main__":
    main()
