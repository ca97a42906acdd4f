"""CFG-Cache beside other ways to save evaluations of the negative: `python dev.py bench cache`.

Adaptive guidance, LinearAG, EasyCache and fewer steps, with about as many evaluations.
"""

import tempfile
from collections.abc import Callable

import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_easycache import EasyCacheNode

from ..nodes.adaptive_guidance import AdaptiveGuidance
from ..nodes.cfg_cache import CFGCache
from ..nodes.linear_ag import LinearAG
from ..nodes.pag import PAG
from . import FAMILIES
from ._demo import Demo
from ._nodes import run_node
from ._quality import MEANING, Table, asked, print_header
from .adaptive import fitted

COUNT = 120
STEPS = 20
SCALE = 3.0
EASY = {"unet": 0.11, "dit": 0.05}  # reuse_threshold at which EasyCache takes about as many evaluations


def easy_cache(model: ModelPatcher, threshold: float) -> ModelPatcher:
    """EasyCache on a copy of the network's input: it adds to the input in place, and with a flow model in 32 bits that
    is the x from which x0 is computed afterwards (apply_cache_diff in core's nodes_easycache.py)."""
    model = model.clone()
    model.add_wrapper_with_key(
        WrappersMP.DIFFUSION_MODEL, "copy", lambda run, x, *args, **kw: run(x.clone(), *args, **kw)
    )
    return EasyCacheNode.execute(model, threshold, 0.15, 0.95, False).result[0]


def methods(demo: Demo, family: str) -> dict[str, Callable[[], ModelPatcher]]:
    model = demo.model
    settings = {
        "CFG-Cache, every 5": {},
        "CFG-Cache, every 2": {"every": 2},
        "CFG-Cache, warm_up 0.5": {"warm_up": 0.5},
        "CFG-Cache, low 1.1, high 1.1": {"low": 1.1, "high": 1.1},
        "CFG-Cache, limit 1": {"limit": 1.0},
        "CFG-Cache, no limit": {"limit": 100.0},
    }
    found = {name: lambda given=given: run_node(CFGCache, model=model, **given) for name, given in settings.items()}
    return found | {
        "adaptive, x0 0.995": lambda: run_node(AdaptiveGuidance, model=model),
        "LinearAG": lambda: run_node(LinearAG, model=model, file=fitted(demo, SCALE)),
        "EasyCache": lambda: easy_cache(model, EASY[family]),
    }


def fill(family: str) -> None:
    table = Table(family, COUNT)
    plain = table.demo.model
    table.row(f"CFG {SCALE:g}", plain, SCALE, STEPS)
    for steps in (16, 13):
        if asked(f"{steps} steps"):
            table.row(f"CFG {SCALE:g}, {steps} steps", plain, SCALE, steps)
    for name, make in methods(table.demo, family).items():
        if asked(name):
            table.row(name, make(), SCALE, STEPS)
    for name, model in {"PAG 1": plain, "PAG 1, CFG-Cache": run_node(CFGCache, model=plain)}.items():
        if asked(name):
            table.row(name, run_node(PAG, model=model, scale=1.0, preset="as typed"), SCALE, STEPS)


def main() -> None:
    print(f"{COUNT} images, euler, {STEPS} steps but where said otherwise. {MEANING}\n")
    print_header()
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        folder_paths.add_model_folder_path("guidekit", folder, is_default=True)
        for family in FAMILIES:
            fill(family)


if __name__ == "__main__":
    main()
