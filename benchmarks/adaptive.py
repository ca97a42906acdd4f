"""What a negative prompt costs and what may be left out: `python dev.py bench adaptive`.

Guidance interval, adaptive guidance and LinearAG against CFG in every step, and against CFG with fewer steps.
"""

import tempfile

import comfy.samplers
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher

from ..demo import measures, models, pictures
from ..demo.judge import load_judge
from ..nodes.adaptive_guidance import AdaptiveGuidance
from ..nodes.guidance_interval import GuidanceInterval
from ..nodes.linear_ag import LinearAG
from ..nodes.linear_ag_fit import LinearAGFit
from . import FAMILIES
from ._demo import Demo, count_evaluations, drawn_pictures
from ._nodes import run_node
from ._table import print_row

COUNT = 200
STEPS = 20  # as the paper
SCALES = (3.0, 7.5)
THRESHOLDS = {"x0": (0.98, 0.99, 0.995), "raw": (0.98, 0.991, 0.995)}
TRAJECTORIES = 64
HEADER = (
    "| model | guidance | evaluations | saved | shape and colour | change against CFG | background | unlike CFG "
    "| Fréchet | saturation |"
)


def fitted(demo: Demo, cfg: float) -> str:
    """A file of coefficients from prompts that the table does not use."""
    scenes = pictures.random_scenes(TRAJECTORIES, torch.Generator().manual_seed(77))
    sampling = demo.model.get_model_object("model_sampling")
    side = pictures.SIZE // models.PACK
    return run_node(
        LinearAGFit,
        model=demo.model,
        clip=demo.clip,
        negative=demo.encode([""]),
        sampler=comfy.samplers.sampler_object("euler"),
        sigmas=comfy.samplers.calculate_sigmas(sampling, "normal", STEPS),
        latent={"samples": torch.zeros(4, models.LATENT_CHANNELS, side, side)},
        prompts="\n".join(pictures.caption(scenes, i) for i in range(TRAJECTORIES)),
        cfg=cfg,
        trajectories=4 * TRAJECTORIES,
    )


def methods(demo: Demo, cfg: float) -> dict[str, ModelPatcher]:
    model = demo.model
    found = {
        "interval SDXL": run_node(GuidanceInterval, model=model),
        "first 5 steps": run_node(GuidanceInterval, model=model, limits="percent", end_percent=5 / STEPS),
    }
    for space, thresholds in THRESHOLDS.items():
        for threshold in thresholds:
            settings = {"space": space, "threshold": threshold}
            found[f"adaptive, {space} {threshold:g}"] = run_node(AdaptiveGuidance, model=model, **settings)
    found["LinearAG"] = run_node(LinearAG, model=model, file=fitted(demo, cfg))
    return found


class Table:
    def __init__(self, family: str, cfg: float, real: torch.Tensor):
        self.family, self.cfg, self.real, self.demo = family, cfg, real, Demo(family, COUNT)
        self.reference: tuple[torch.Tensor, torch.Tensor] | None = None  # CFG: pictures, and which are right

    def row(self, name: str, model: ModelPatcher, cfg: float, steps: int = STEPS) -> None:
        model = model.clone()
        counted = count_evaluations(model)
        images = self.demo.sample(model, cfg, steps, batch=1)
        judged, scenes = load_judge()(images), self.demo.scenes
        right = {k: (judged[k].argmax(1) == getattr(scenes, k)).float() for k in ("shape", "colour", "background")}
        both = right["shape"] * right["colour"]
        if self.reference is None:
            self.reference = images, both
        low, high = measures.bootstrap(100 * (both - self.reference[1]))
        change = f"{100 * (both - self.reference[1]).mean():+.1f} ({low:+.1f} to {high:+.1f})"
        unlike = (images - self.reference[0]).square().mean().sqrt()
        used = counted.count / COUNT
        saved = 100 - 100 * used / (2 * STEPS)
        print_row(
            f"| {self.family} | {name} | {used:.1f} | {saved:.0f} % | {100 * both.mean():.1f} % | {change} "
            f"| {100 * right['background'].mean():.1f} % | {unlike:.4f} "
            f"| {measures.frechet(judged['features'], self.real):.2f} | {measures.saturation(images).mean():.3f} |"
        )

    def fill(self) -> None:
        plain = self.demo.model
        self.row(f"CFG {self.cfg:g}", plain, self.cfg)
        for steps in (15, 12):
            self.row(f"CFG {self.cfg:g}, {steps} steps", plain, self.cfg, steps)
        self.row("none", plain, 1.0)
        for name, model in methods(self.demo, self.cfg).items():
            self.row(f"{name}, cfg {self.cfg:g}", model, self.cfg)


def main() -> None:
    print(
        f"{COUNT} captions one at a time, euler, {STEPS} steps but where said otherwise, the same noise. Evaluations: "
        "of the network, per picture. Change: of shape and colour both right, in points, with its 95 % paired "
        "bootstrap interval. Unlike CFG: root mean square difference from the pictures of CFG with the same noise, of "
        f"1. LinearAG fitted on {4 * TRAJECTORIES} other trajectories.\n"
    )
    print(HEADER + "\n" + "|---" * 10 + "|")
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        folder_paths.add_model_folder_path("guidekit", folder, is_default=True)
        real = load_judge()(drawn_pictures())["features"]
        for family in FAMILIES:
            for cfg in SCALES:
                Table(family, cfg, real).fill()


if __name__ == "__main__":
    main()
