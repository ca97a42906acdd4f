"""FreCaS on the demo models, from 64 to 128: `python dev.py bench frecas`.

Beside sampling at 128 directly, and beside the usual way: the latent enlarged, with half of the noise added again.
"""

import time
from collections.abc import Callable

import comfy.samplers
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_custom_sampler import DisableNoise, SamplerCustomAdvanced
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..nodes.frecas_plan import FreCaSPlan
from ..nodes.frecas_up import FreCaSUp
from ..nodes.frequency_guidance import RESIZE, FrequencyGuidance
from . import FAMILIES
from ._demo import Demo, drawn_like, found_in
from ._nodes import run_node, run_node_all
from ._quality import COLUMNS, MEANING, Look, asked, print_header
from ._table import print_row
from .flops import plain_attention

COUNT = 60
SCALE = 3.0
BATCH = 10
SMALL, LARGE, DOWNSCALE = 64, 128, 4
STEPS = 25
TIMED = 4


class Given:
    """A noise that is known."""

    seed = 0

    def __init__(self, noise: Tensor):
        self.noise = noise

    def generate_noise(self, _latent: dict) -> Tensor:
        return self.noise


def noise(side: int, start: int, count: int) -> Tensor:
    shape = (count, 8, side // DOWNSCALE, side // DOWNSCALE)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1000 + start))


def sampled(demo: Demo, model: ModelPatcher, captions: list[str], given, sigmas: Tensor, latent: Tensor) -> tuple:
    """(what is left of the noise, what is denoised)"""
    euler, guider = comfy.samplers.sampler_object("euler"), demo.guider(model, SCALE, captions)
    return [
        out["samples"]
        for out in SamplerCustomAdvanced.execute(given, guider, euler, sigmas, {"samples": latent}).result
    ]


def levels(demo: Demo, steps: int, share: float = 1.0) -> Tensor:
    sampling = demo.model.get_model_object("model_sampling")
    return comfy.samplers.calculate_sigmas(sampling, "normal", round(steps / share))[-(steps + 1) :]


Way = Callable[[Demo, list[str], int], Tensor]


def at_once(side: int, steps: int = STEPS) -> Way:
    def way(demo: Demo, captions: list[str], start: int) -> Tensor:
        given = noise(side, start, len(captions))
        return sampled(demo, demo.model, captions, Given(given), levels(demo, steps), torch.zeros_like(given))[0]

    return way


def enlarged_latent(steps: int, again: int) -> Way:
    """Upscale Latent, then KSampler with denoise 0.5."""

    def way(demo: Demo, captions: list[str], start: int) -> Tensor:
        small = at_once(SMALL, steps)(demo, captions, start)
        side = LARGE // DOWNSCALE
        large = comfy.utils.common_upscale(small, side, side, "nearest-exact", "disabled")
        given = Given(noise(LARGE, start, len(captions)))
        return sampled(demo, demo.model, captions, given, levels(demo, again, 0.5), large)[0]

    return way


def frecas(steps: str, high: float | None, **settings: object) -> Way:
    def way(demo: Demo, captions: list[str], start: int) -> Tensor:
        inputs = {"model": demo.model, "sizes": f"{SMALL}, {LARGE}", "steps": steps, "preset": "as typed", **settings}
        _, first, plan, _ = run_node_all(FreCaSPlan, **inputs)
        given = noise(SMALL, start, len(captions))
        _, small = sampled(demo, demo.model, captions, Given(given), first, torch.zeros_like(given))
        inputs = {
            "model": demo.model,
            "plan": plan,
            "denoised": {"samples": small},
            "vae": demo.vae,
            "random_seed": start,
        }
        larger, second, factor, _ = run_node_all(FreCaSUp, **inputs)
        model = demo.model
        if high is not None:
            guidance = {"split": RESIZE, "high": high, "size_factor": factor}
            model = run_node(FrequencyGuidance, model=model, **guidance)
        return sampled(demo, model, captions, DisableNoise.execute()[0], second, larger["samples"])[0]

    return way


WAYS: dict[str, Way] = {
    "128 at once, 25 steps": at_once(LARGE),
    "64, 25 steps": at_once(SMALL),
    "64 (20 steps), latent enlarged, denoise 0.5 (5 steps)": enlarged_latent(20, 5),
    "FreCaS, 20 and 5 steps, high 4.667": frecas("20, 5", 35 / 7.5),
    "FreCaS, 20 and 5 steps, high 2": frecas("20, 5", 2.0),
    "FreCaS, 20 and 5 steps, plain CFG": frecas("20, 5", None),
    "FreCaS, 20 and 10 steps, high 4.667": frecas("20, 10", 35 / 7.5),
    "FreCaS, 20 and 5 steps, high 4.667, gamma 3": frecas("20, 5", 35 / 7.5, gamma=3.0),
    "FreCaS, 20 and 5 steps, high 4.667, ends 0.4": frecas("20, 5", 35 / 7.5, ends="0.4"),
}


def images(demo: Demo, way: Way) -> Tensor:
    """Images for the judge, which knows images of 64 pixels: 2 x 2 pixels are averaged."""
    parts = []
    for start in range(0, len(demo.captions), BATCH):
        found = demo.decode(way(demo, demo.captions[start : start + BATCH], start))
        parts.append(torch.nn.functional.adaptive_avg_pool2d(found, SMALL))
    return torch.cat(parts)


def operations(demo: Demo, way: Way) -> float:
    """Operations for one image, decoding included, in GFLOP."""
    model = demo.model.clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = plain_attention
    counted = demo.asking(demo.captions[:1], demo.seed)
    counted.model = model
    with FlopCounterMode(display=False) as counter:
        counted.decode(way(counted, counted.captions, 0))
    return counter.get_total_flops() / 1e9


def seconds(demo: Demo, way: Way) -> float:
    """For one of 4 images, decoding included: the better of two runs."""
    times = []
    for _run in range(2):
        start = time.perf_counter()
        demo.decode(way(demo, demo.captions[:TIMED], 0))
        times.append(time.perf_counter() - start)
    return min(times) / TIMED


def fill(family: str) -> None:
    demo, first = Demo(family, COUNT), None
    real = found_in(drawn_like()).features
    for name, way in WAYS.items():
        if first is not None and not asked(name):
            continue
        look = Look(images(demo, way), demo.scenes)
        cells = f"{operations(demo, way):.1f} | {1e3 * seconds(demo, way):.0f} ms | {look.cells(real, first)}"
        print_row(f"| {family} | {name} | {cells} |")
        first = first or look


def main() -> None:
    print(
        f"{COUNT} images of {LARGE} x {LARGE} but where said otherwise, euler, cfg {SCALE:g}; judged at half the size, "
        "at which the models were trained. GFLOP and time (this machine's) of an image, decoding included. High: of "
        f"Frequency Guidance in the second stage. {MEANING}\n"
    )
    print_header(("model", "image", "GFLOP", "time", *COLUMNS))
    with torch.inference_mode():
        for family in FAMILIES:
            fill(family)


if __name__ == "__main__":
    main()
