"""Where the processor spends a step with a node, function by function: `python dev.py bench hotspots`.

With small batches a card waits for the processor, and what counts is how much Python a node adds. On a GPU: networks of
real size; else small ones. Rows are named as in the table of `bench device`.

    python -m guidekit.benchmarks.hotspots [--network sdxl] [--rows PAG "PAG (core)"] [--batch 1] [--lines 25]
"""

import argparse
import cProfile
import logging
import pstats

import comfy.model_management
import torch

from . import FAMILIES as _  # noqa: F401  reads the command line before the host does
from ._networks import FULL, SMALL, build
from ._steps import StepTimes
from .device import rows

STEPS = 8


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(prog="guidekit.benchmarks.hotspots", description=__doc__.split("\n")[0])
    parser.add_argument("--network", choices=list(SMALL), default="sdxl")
    parser.add_argument("--rows", nargs="+", default=["PAG", "PAG (core)", "NAG"], metavar="ROW")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--lines", type=int, default=25, help="functions, those with most time of their own first")
    options = parser.parse_args()
    logging.getLogger("guidekit").setLevel(logging.ERROR)  # nodes tell of every run what they did in it
    device = comfy.model_management.get_torch_device()
    cuda = device.type == "cuda"
    network = (FULL if cuda else SMALL)[options.network]
    model = build(network, device, torch.bfloat16 if cuda else torch.float32)
    plain: dict[float, float] = {}
    for name in options.rows:
        row = next(each for each in rows(options.network) if each.node == name)

        def seconds(model, cfg=row.cfg) -> float:
            times = StepTimes(cuda)
            network.sample(model, cfg, STEPS, options.batch, times)
            return times.median()

        made = row.make(network, model)
        for each in (model, made):
            seconds(each)
        if row.cfg not in plain:
            plain[row.cfg] = seconds(model)
        took = seconds(made)
        profile = cProfile.Profile()
        with profile:
            seconds(made)
        print(
            f"\n## {network.name}, {name}, cfg {row.cfg:g}, batch {options.batch}: a step {1e3 * took:.1f} ms, without "
            f"it {1e3 * plain[row.cfg]:.1f} ms. Of {STEPS} steps, profiled:\n",
            flush=True,
        )
        pstats.Stats(profile).sort_stats("tottime").print_stats(options.lines)


if __name__ == "__main__":
    main()
