"""APG against CFG, and against CFG at the same effective scale: `python dev.py bench apg`."""

import torch

from ..demo import measures
from ..demo.judge import load_judge
from ..nodes.apg import APG
from . import FAMILIES
from ._demo import Demo, diversity, drawn_pictures, measure_scale
from ._nodes import run_node
from ._table import print_row

COUNT = 200
SCALES = (3.0, 8.0, 15.0)
HEADER = (
    "| model | guidance | omega_e | shape | colour | saturation (change against CFG) | contrast | clipped | diversity "
    "| Fréchet |"
)


def row(name: str, scale: float, images: torch.Tensor, plain: torch.Tensor, demo: Demo, real: torch.Tensor) -> str:
    judged, scenes = load_judge()(images), demo.scenes
    right = [100 * (judged[k].argmax(1) == getattr(scenes, k)).float().mean() for k in ("shape", "colour")]
    saturation = measures.saturation(images)
    low, high = measures.bootstrap(saturation - measures.saturation(plain))
    change = "" if images is plain else f" ({low:+.3f} to {high:+.3f})"
    return (
        f"| {name} | {scale:.2f} | {right[0]:.1f} % | {right[1]:.1f} % | {saturation.mean():.3f}{change} "
        f"| {measures.contrast(images).mean():.3f} | {100 * measures.clipped(images).mean():.1f} % "
        f"| {diversity(judged['features'], scenes):.2f} | {measures.frechet(judged['features'], real):.2f} |"
    )


def main() -> None:
    print(
        f"{COUNT} captions, euler, 25 steps, two evaluations per step in every row, the same noise. omega_e: effective "
        "scale (sums over steps and pictures). In brackets: 95 % bootstrap interval of its paired change.\n"
    )
    print(HEADER + "\n" + "|---" * 10 + "|")
    with torch.inference_mode():
        drawn = drawn_pictures()
        real = load_judge()(drawn)["features"]
        for family in FAMILIES:
            demo = Demo(family, COUNT)
            for scale in SCALES:
                plain = demo.sample(demo.model, scale)
                print_row(row(f"{family} | CFG {scale:g}", scale, plain, plain, demo, real))
                for label, settings in {"APG": {}, "APG, momentum 0": {"momentum": 0.0}}.items():
                    model = run_node(APG, model=demo.model, **settings)
                    measured = measure_scale(model)
                    images = demo.sample(model, scale)
                    print_row(row(f"{family} | {label}, cfg {scale:g}", measured.mean, images, plain, demo, real))
                    equal = demo.sample(demo.model, measured.mean)
                    print_row(row(f"{family} | CFG {measured.mean:.2f}", measured.mean, equal, plain, demo, real))
    print(f"\nDrawn pictures have saturation {measures.saturation(drawn).mean():.3f}.")


if __name__ == "__main__":
    main()
