"""CFG++ against CFG at the same effective scale, and its inversion: `python dev.py bench cfgpp`."""

import comfy.samplers
import torch
from comfy.samplers import Sampler

from ..demo import measures
from ..nodes.cfgpp_inversion import CFGPPInversion
from ..nodes.sampler_cfgpp import SamplerCFGPP
from . import FAMILIES
from ._demo import Demo, drawn
from ._nodes import run_node
from ._quality import MEANING, Table, print_header
from ._table import print_row

COUNT = 240
LAMBDAS = (0.2, 0.4, 0.6, 0.8, 1.0)
SCALES = (2.0, 3.0, 7.5)  # scales of plain CFG, to find the best
INVERTED = 100
INVERSION_STEPS = 50
PAIRS = {0.2: 2.0, 0.6: 7.5, 1.0: 12.5}  # the paper's lambda and CFG scale


def sampler(name: str, guidance_lambda: float) -> Sampler:
    return run_node(SamplerCFGPP, sampler=name, guidance_lambda=guidance_lambda)


def fill(family: str) -> None:
    table = Table(family, COUNT)
    model = table.demo.model
    for cfg in sorted(SCALES, key=lambda cfg: cfg != 3.0):
        table.row(f"CFG euler {cfg:g}", model, cfg)
    for guidance_lambda in LAMBDAS:
        name = f"CFG++ euler, lambda {guidance_lambda:g}"
        omega = table.row(name, model, 1.0, sampler=sampler("euler", guidance_lambda))
        table.row(f"CFG euler {omega:.2f}", model, omega)
    for name, core in (("dpmpp 2m", "dpmpp_2m_cfg_pp"), ("dpmpp 2m sde", None), ("dpmpp 2s ancestral", None)):
        table.row(f"CFG++ {name}, lambda 0.6", model, 1.0, sampler=sampler(name, 0.6))
        if core:
            table.row(f"core's {core}, cfg 0.6", model, 0.6, sampler=core)


class Inversion:
    """Drawn images with their captions, inverted to noise and sampled back."""

    def __init__(self, family: str):
        self.family, self.demo = family, Demo(family, INVERTED, seed=4000, each=1)
        self.drawn = drawn(self.demo.scenes)
        self.latent = self.demo.encode_images(self.drawn)
        sampling = self.demo.model.get_model_object("model_sampling")
        self.sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", INVERSION_STEPS)
        self.least = self._error(self.demo.decode(self.latent))  # of the autoencoder alone

    def _error(self, images: torch.Tensor) -> torch.Tensor:
        return (images - self.drawn).square().mean((1, 2, 3))

    def row(self, name: str, guidance_lambda: float | None, cfg: float) -> None:
        demo, model = self.demo, self.demo.model
        given = {"model": model, "sigmas": self.sigmas, "guidance_lambda": guidance_lambda or 0.0}
        inversion, rising, falling = CFGPPInversion.execute(**given).args
        forward = sampler("euler", guidance_lambda or 0.0)
        if guidance_lambda is None:
            inversion = forward = comfy.samplers.sampler_object("euler")
        guider, silence = demo.guider(model, cfg, demo.captions), torch.zeros_like(self.latent)
        noise = guider.sample(silence, self.latent, inversion, rising, disable_pbar=True)
        latent = guider.sample(silence, noise, forward, falling, disable_pbar=True)
        self.say(name, self._error(demo.decode(latent)))

    def say(self, name: str, error: torch.Tensor) -> None:
        low, high = measures.bootstrap(error.sqrt())
        print_row(
            f"| {self.family} | {name} | {error.sqrt().mean():.4f} ({low:.4f} to {high:.4f}) "
            f"| {-10 * error.log10().mean():.1f} |"
        )

    def fill(self) -> None:
        self.say("autoencoder alone", self.least)
        self.row("DDIM, no guidance", None, 1.0)
        for guidance_lambda, cfg in PAIRS.items():
            self.row(f"CFG++, lambda {guidance_lambda:g}", guidance_lambda, 1.0)
            self.row(f"DDIM, CFG {cfg:g}", None, cfg)


def main() -> None:
    with torch.inference_mode():
        print(
            f"Inversion of {INVERTED} drawn images with their captions and sampling from there, euler, "
            f"{INVERSION_STEPS} steps each way. Error: root mean square over the image, of 1, with its 95 % "
            "bootstrap interval; PSNR in dB, mean over images.\n"
        )
        print("| model | method | error | PSNR |\n|---|---|---|---|")
        for family in FAMILIES:
            Inversion(family).fill()
        print(f"\n{COUNT} images, 25 steps. {MEANING}\n")
        print_header()
        for family in FAMILIES:
            fill(family)


if __name__ == "__main__":
    main()
