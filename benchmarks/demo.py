"""How good the demo models are: `python dev.py bench demo`."""

import time

import torch

from ..demo import measures
from ..demo.world.scenes import generator_of, random_scenes
from . import FAMILIES
from ._demo import Demo, drawn, drawn_like, found_in
from ._quality import COLUMNS, Look, print_header
from ._table import print_row

COUNT = 500  # captions
SCALES = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
SOLIDS = (2, 3)
PROMPTS, SEEDS = 30, 10  # for the diversity
VARIED = (1.0, 4.0, 12.0)  # scales at which it is measured


def bars(family: str, solids: int, real: torch.Tensor) -> None:
    demo = Demo(family, COUNT, solids=solids, each=1)
    few = Demo(family, PROMPTS * SEEDS, solids=solids, each=SEEDS)
    for scale in sorted(SCALES, key=lambda scale: scale not in VARIED):  # the most important rows come first
        look = Look(demo.sample(demo.model, scale), demo.scenes, 1)
        diversity = "-"
        if scale in VARIED:
            features = found_in(few.sample(few.model, scale)).features
            diversity = f"{measures.spread(features, SEEDS):.2f}"
        cells = look.cells(real).rpartition("|")[0]
        print_row(f"| {family} | {solids} | cfg {scale:g} | {cells} | {diversity} |")


def main() -> None:
    print(
        f"{COUNT} captions of solids that are never together in training, euler, 25 steps. Diversity: mean distance "
        f"between {SEEDS} images of a caption in the judge's features, over {PROMPTS} captions.\n"
    )
    print_header(("model", "solids", "images", *COLUMNS))
    with torch.inference_mode():
        for solids in SOLIDS:
            real = found_in(drawn_like(solids)).features
            scenes = random_scenes(COUNT, generator_of("evaluation", 3), "new pairs", solids)
            print_row(f"| | {solids} | drawn | {Look(drawn(scenes), scenes, 1).cells(real)} |")
            for family in (*FAMILIES, *(["unet_early"] if "unet" in FAMILIES else [])):
                bars(family, solids, real)
        for family in FAMILIES:
            four = Demo(family, 4)
            start = time.perf_counter()
            four.sample(four.model, 3.0)
            print(f"\n{family}: 4 images in {time.perf_counter() - start:.1f} s on {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
