"""CFG++ against CFG at the same effective scale, and its inversion: `python dev.py bench cfgpp`."""

import comfy.samplers
import torch
from comfy.samplers import Sampler

from ..demo import measures, pictures
from ..demo.judge import load_judge
from ..nodes.cfgpp_inversion import CFGPPInversion
from ..nodes.sampler_cfgpp import SamplerCFGPP
from . import FAMILIES
from ._demo import Demo, diversity, drawn_pictures, measure_scale
from ._nodes import run_node
from ._table import print_row

COUNT = 200
STEPS = 25
LAMBDAS = (0.2, 0.4, 0.6, 0.8, 1.0)
SCALES = (2.0, 3.0, 7.5)  # of plain CFG, for the best of each
INVERTED = 100
INVERSION_STEPS = 50
PAIRS = {0.2: 2.0, 0.6: 7.5, 1.0: 12.5}  # the paper's lambda and CFG scale
HEADER = "| model | guidance | omega_e | shape and colour | background | saturation | clipped | diversity | Fréchet |"


def sampler(name: str, guidance_lambda: float) -> Sampler:
    return run_node(SamplerCFGPP, sampler=name, guidance_lambda=guidance_lambda)


class Sweep:
    def __init__(self, family: str, real: torch.Tensor):
        self.family, self.real, self.demo = family, real, Demo(family, COUNT)

    def row(self, name: str, method: str | Sampler, cfg: float) -> float:
        """Prints a row; returns omega_e."""
        model = self.demo.model.clone()
        measured = measure_scale(model)
        images = self.demo.sample(model, cfg, STEPS, method)
        omega = measured.mean
        judged, scenes = load_judge()(images), self.demo.scenes
        right = {k: judged[k].argmax(1) == getattr(scenes, k) for k in ("shape", "colour", "background")}
        both = 100 * (right["shape"] & right["colour"]).float().mean()
        print_row(
            f"| {self.family} | {name} | {omega:.2f} | {both:.1f} % | {100 * right['background'].float().mean():.1f} % "
            f"| {measures.saturation(images).mean():.3f} | {100 * measures.clipped(images).mean():.1f} % "
            f"| {diversity(judged['features'], scenes):.2f} | {measures.frechet(judged['features'], self.real):.2f} |"
        )
        return omega

    def fill(self) -> None:
        for guidance_lambda in LAMBDAS:
            omega = self.row(f"CFG++ euler, lambda {guidance_lambda:g}", sampler("euler", guidance_lambda), 1.0)
            self.row(f"CFG euler {omega:.2f}", "euler", omega)
        for cfg in SCALES:
            self.row(f"CFG euler {cfg:g}", "euler", cfg)
        for name, core in (("dpmpp 2m", "dpmpp_2m_cfg_pp"), ("dpmpp 2m sde", None), ("dpmpp 2s ancestral", None)):
            self.row(f"CFG++ {name}, lambda 0.6", sampler(name, 0.6), 1.0)
            if core:
                self.row(f"core's {core}, cfg 0.6", core, 0.6)


class Inversion:
    """Drawn pictures with their captions: to noise, and back."""

    def __init__(self, family: str):
        self.family, self.demo = family, Demo(family, INVERTED, seed=4000)
        self.drawn = pictures.draw(self.demo.scenes)
        self.latent = self.demo.vae.encode(self.drawn.movedim(1, -1))
        sampling = self.demo.model.get_model_object("model_sampling")
        self.sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", INVERSION_STEPS)

    def row(self, name: str, guidance_lambda: float | None, cfg: float) -> None:
        demo, model = self.demo, self.demo.model
        given = {"model": model, "sigmas": self.sigmas, "guidance_lambda": guidance_lambda or 0.0}
        inversion, rising, falling = CFGPPInversion.execute(**given).args
        forward = sampler("euler", guidance_lambda or 0.0)
        if guidance_lambda is None:
            inversion = forward = comfy.samplers.sampler_object("euler")
        guider, silence = demo.guider(model, cfg, demo.captions), torch.zeros_like(self.latent)
        noise = guider.sample(silence, self.latent, inversion, rising, disable_pbar=True)
        images = demo.decode(guider.sample(silence, noise, forward, falling, disable_pbar=True))
        error = (images - self.drawn).square().mean((1, 2, 3))
        low, high = measures.bootstrap(error.sqrt())
        print_row(
            f"| {self.family} | {name} | {error.sqrt().mean():.4f} ({low:.4f} to {high:.4f}) "
            f"| {-10 * error.log10().mean():.1f} |"
        )

    def fill(self) -> None:
        self.row("DDIM, no guidance", None, 1.0)
        for guidance_lambda, cfg in PAIRS.items():
            self.row(f"CFG++, lambda {guidance_lambda:g}", guidance_lambda, 1.0)
            self.row(f"DDIM, CFG {cfg:g}", None, cfg)


def main() -> None:
    print(
        f"{COUNT} captions, {STEPS} steps, two evaluations per step (2s: four), the same noise. omega_e: effective "
        "scale (sums over steps and pictures); below each lambda plain CFG at the same.\n"
    )
    print(HEADER + "\n" + "|---" * 9 + "|")
    with torch.inference_mode():
        real = load_judge()(drawn_pictures())["features"]
        for family in FAMILIES:
            Sweep(family, real).fill()
        print(
            f"\nInversion of {INVERTED} drawn pictures with their captions and sampling from there, euler, "
            f"{INVERSION_STEPS} steps each way. Error: root mean square over the picture, of 1, with its 95 % "
            "bootstrap interval; PSNR in dB, mean over pictures.\n"
        )
        print("| model | method | error | PSNR |\n|---|---|---|---|")
        for family in FAMILIES:
            Inversion(family).fill()


if __name__ == "__main__":
    main()
