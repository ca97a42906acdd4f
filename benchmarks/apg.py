"""APG against CFG, and against CFG at the same effective scale: `python dev.py bench apg`."""

import torch

from ..nodes.apg import APG
from . import FAMILIES
from ._nodes import run_node
from ._quality import MEANING, Table, print_header

COUNT = 240
SCALES = (3.0, 8.0, 15.0)


def main() -> None:
    print(f"{COUNT} images, euler, 25 steps. {MEANING}\n")
    print_header()
    with torch.inference_mode():
        for family in FAMILIES:
            for scale in SCALES:
                table = Table(family, COUNT)
                plain = table.demo.model
                table.row(f"CFG {scale:g}", plain, scale)
                for label, settings in {"APG": {}, "APG, momentum 0": {"momentum": 0.0}}.items():
                    equal = table.row(f"{label}, cfg {scale:g}", run_node(APG, model=plain, **settings), scale)
                    table.row(f"CFG {equal:.2f}", plain, equal)


if __name__ == "__main__":
    main()
