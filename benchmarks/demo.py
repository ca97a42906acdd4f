"""How good the demo models are: `python dev.py bench demo`."""

import time

import torch

from ..demo import measures, pictures
from ..demo.judge import colour_by_rule, load_judge
from . import FAMILIES
from ._demo import Demo
from ._table import print_row

COUNT = 500
SCALES = {3.0: COUNT, 1.0: 100, 8.0: 100, 15.0: 100}  # pictures at each
HEADER = "| pictures | shape | colour | colour by rule | background | saturation | contrast | clipped | Fréchet |"


def row(name: str, images: torch.Tensor, scenes: pictures.Scenes, real: torch.Tensor) -> str:
    judged = load_judge()(images)
    right = {
        k: 100 * (judged[k].argmax(1) == getattr(scenes, k)).float().mean() for k in ("shape", "colour", "background")
    }
    rule = 100 * (colour_by_rule(images) == scenes.colour).float().mean()
    values = [measure(images).mean() for measure in (measures.saturation, measures.contrast, measures.clipped)]
    distance = measures.frechet(judged["features"], real)
    return (
        f"| {name} | {right['shape']:.1f} % | {right['colour']:.1f} % | {rule:.1f} % | {right['background']:.1f} % "
        f"| {values[0]:.3f} | {values[1]:.3f} | {100 * values[2]:.1f} % | {distance:.2f} |"
    )


def main() -> None:
    with torch.inference_mode():
        fresh = pictures.random_scenes(4 * COUNT, torch.Generator().manual_seed(2))
        real = load_judge()(pictures.draw(fresh))["features"]
        print(f"{COUNT} captions at cfg 3 and for the drawn pictures, 100 else; euler, 25 steps; Fréchet distance to")
        print(f"{4 * COUNT} drawn pictures.\n")
        print(HEADER + "\n" + "|---" * HEADER.count(" | ") + "|---|")
        drawn = pictures.random_scenes(COUNT, torch.Generator().manual_seed(3))
        print_row(row("drawn", pictures.draw(drawn), drawn, real))
        for family in FAMILIES:
            for scale, count in SCALES.items():
                demo = Demo(family, count)
                print_row(row(f"{family}, cfg {scale:g}", demo.sample(demo.model, scale), demo.scenes, real))
        for family in FAMILIES:
            four = Demo(family, 4)
            start = time.perf_counter()
            four.sample(four.model, 3.0)
            print(f"\n{family}: 4 pictures in {time.perf_counter() - start:.1f} s on {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
