"""The cost of the negative prompt, and of ways to evaluate it less often: `python dev.py bench adaptive`.

Guidance interval, adaptive guidance and LinearAG against CFG in every step, and against CFG with fewer steps.
"""

import tempfile

import comfy.samplers
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher

from ..demo.world.captions import plain_caption
from ..demo.world.scenes import generator_of, random_scenes
from ..nodes.adaptive_guidance import AdaptiveGuidance
from ..nodes.guidance_interval import GuidanceInterval
from ..nodes.linear_ag import LinearAG
from ..nodes.linear_ag_fit import LinearAGFit
from . import FAMILIES
from ._demo import SOLIDS, Demo
from ._nodes import run_node
from ._quality import MEANING, Table, asked, print_header

COUNT = 240
STEPS = 20  # as the paper
SCALES = (3.0, 7.5)
THRESHOLDS = {"x0": (0.98, 0.99, 0.995), "raw": (0.98, 0.991, 0.995)}
TRAJECTORIES = 64


def fitted(demo: Demo, cfg: float) -> str:
    """A file of coefficients from prompts that the table does not use."""
    scenes = random_scenes(TRAJECTORIES, generator_of("evaluation", 77), "known", SOLIDS)
    sampling = demo.model.get_model_object("model_sampling")
    return run_node(
        LinearAGFit,
        model=demo.model,
        clip=demo.clip,
        negative=demo.encode([""]),
        sampler=comfy.samplers.sampler_object("euler"),
        sigmas=comfy.samplers.calculate_sigmas(sampling, "normal", STEPS),
        latent={"samples": torch.zeros_like(demo.noise()[:4])},
        prompts="\n".join(plain_caption(scenes, i) for i in range(TRAJECTORIES)),
        cfg=cfg,
        trajectories=4 * TRAJECTORIES,
    )


def methods(demo: Demo, cfg: float) -> dict[str, ModelPatcher]:
    model = demo.model
    found = {"LinearAG": run_node(LinearAG, model=model, file=fitted(demo, cfg))} if asked("LinearAG") else {}
    found |= {
        "interval SDXL": run_node(GuidanceInterval, model=model),
        "first 5 steps": run_node(GuidanceInterval, model=model, limits="percent", end_percent=5 / STEPS),
    }
    for space, thresholds in THRESHOLDS.items():
        for threshold in thresholds:
            settings = {"space": space, "threshold": threshold}
            found[f"adaptive, {space} {threshold:g}"] = run_node(AdaptiveGuidance, model=model, **settings)
    return found


def fill(family: str, cfg: float) -> None:
    table = Table(family, COUNT)
    plain = table.demo.model
    table.row(f"CFG {cfg:g}", plain, cfg, STEPS)
    for steps in (15, 12):
        if asked(f"{steps} steps"):
            table.row(f"CFG {cfg:g}, {steps} steps", plain, cfg, steps)
    if asked("none"):
        table.row("none", plain, 1.0, STEPS)
    for name, model in methods(table.demo, cfg).items():
        if asked(name):
            table.row(f"{name}, cfg {cfg:g}", model, cfg, STEPS)


def main() -> None:
    print(
        f"{COUNT} images, euler, {STEPS} steps but where said otherwise. LinearAG fitted on {4 * TRAJECTORIES} other "
        f"trajectories. {MEANING}\n"
    )
    print_header()
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        folder_paths.add_model_folder_path("guidekit", folder, is_default=True)
        for family in FAMILIES:
            for cfg in SCALES:
                fill(family, cfg)


if __name__ == "__main__":
    main()
