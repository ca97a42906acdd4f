"""From drawn images to noise and back, and with one word of the caption changed: `python dev.py bench inversion`."""

import dataclasses
from functools import partial

import comfy.samplers
import torch
from comfy_extras.nodes_custom_sampler import BasicScheduler
from torch import Tensor

from ..demo import measures
from ..demo.world.captions import plain_caption
from ..demo.world.render import draw
from ..demo.world.scenes import COLOURS, FLOORS, SHAPES, Scenes
from ..nodes.exact_invert import ExactInvert
from ..nodes.exact_sample import ExactSample
from ..nodes.host.inversion.exact_state import METHODS
from ..nodes.negtome import NegToMe
from ..nodes.trajectory_record import TrajectoryRecord
from ..nodes.trajectory_replay import TrajectoryReplay
from . import FAMILIES
from ._demo import Demo, found_in
from ._nodes import run_node
from ._quality import asked
from ._table import print_row
from ._timing import medians

COUNT, EVALUATIONS, STRENGTH, CFG = 40, 50, 0.8, 3.0
PULL = {"threshold": -1.0, "steps": "start to end", "blocks": "all", "end_percent": 0.5}  # all tokens, half of the run
PULLS = (0.0, -0.3)
WORDS = {"colour": COLOURS, "shape": SHAPES, "floor": FLOORS}
SOLIDS = 2


class Images:
    """Drawn images of two solids, for a family's demo model, and their captions. Edits change the left solid, or the
    floor."""

    def __init__(self, family: str):
        self.family, self.demo = family, Demo(family, COUNT, seed=9000, solids=SOLIDS, each=1)
        self.scenes = self.demo.scenes
        self.drawn, masks = draw(self.scenes)
        self.left, self.solids = masks[:, 0], masks.sum(1).clamp(max=1)
        self.latent = self.demo.encode_images(self.drawn)
        self.back = self.demo.decode(self.latent)  # through the autoencoder: what is compared with

    def changed(self, what: str) -> Scenes:
        """The scenes with the next word of the list."""
        old = getattr(self.scenes, what)
        new = old.clone()
        (new if old.ndim == 1 else new[:, 0]).add_(1).remainder_(len(WORDS[what]))
        return dataclasses.replace(self.scenes, **{what: new})

    def guider(self, scenes: Scenes) -> comfy.samplers.CFGGuider:
        captions = [plain_caption(scenes, i) for i in range(COUNT)]
        return self.demo.guider(self.demo.model, CFG, captions)

    def spread(self, latent: Tensor, sigmas: Tensor) -> float:
        """Standard deviation of the noise, relative to its noise level."""
        return (self.demo.model.model.process_latent_in(latent).std() / sigmas[0]).item()

    def sigmas(self, evaluations: int) -> Tensor:
        """The last part of a schedule, of so many steps that the run costs EVALUATIONS."""
        return BasicScheduler.execute(self.demo.model, "normal", EVALUATIONS // evaluations, STRENGTH)[0]


class Exact:
    def __init__(self, data: Images, method: str):
        self.data, self.name = data, method
        self.sigmas = data.sigmas(1 if method in ("bdia", "o-belm") else 2)
        given = {"guider": data.guider(data.scenes), "sigmas": self.sigmas, "latent": {"samples": data.latent}}
        self.inverted = run_node(ExactInvert, **given, method=method, p=0.0)

    def sample(self, scenes: Scenes) -> Tensor:
        return run_node(ExactSample, guider=self.data.guider(scenes), inverted=self.inverted)["samples"]

    def spread(self) -> float:
        return self.data.spread(self.inverted["samples"], self.sigmas)


class Ddim:
    """Euler backwards, with the prediction at the level that is stepped to, and Euler forwards."""

    name = "DDIM"

    def __init__(self, data: Images):
        self.data, self.sigmas = data, data.sigmas(1)
        self.noise = self._walk(data.scenes, data.latent, backwards=True)

    def sample(self, scenes: Scenes) -> Tensor:
        return self._walk(scenes, self.noise, backwards=False)

    def spread(self) -> float:
        return self.data.spread(self.noise, self.sigmas)

    def _walk(self, scenes: Scenes, x: Tensor, backwards: bool) -> Tensor:
        class ScheduleSampler(comfy.samplers.Sampler):
            def sample(self, guider, sigmas, extra_args, callback, noise, *args, **kwargs):
                levels, x = sigmas.tolist(), noise
                pairs = list(zip(levels, levels[1:]))
                for sigma, target in reversed(pairs) if backwards else pairs:
                    f = (x - guider(x, x.new_full((len(x),), sigma), **extra_args)) / sigma
                    x = x + ((sigma - target) if backwards else (target - sigma)) * f
                return x

        model = self.data.demo.model.model
        guider = self.data.guider(scenes)
        raw = model.process_latent_in(x)
        # The result passes process_latent_out.
        return guider.sample(raw, torch.zeros_like(raw), ScheduleSampler(), self.sigmas, disable_pbar=True, seed=0)


class Replay:
    """Direct Inversion, one image after the other: recorded at cfg 1, then sampled beside the recording, with NegToMe
    pulling towards it."""

    def __init__(self, data: Images, alpha: float):
        self.data, self.sigmas, self.name = data, data.sigmas(1), f"replay, NegToMe {alpha:g}"
        self.model = run_node(NegToMe, model=data.demo.model, alpha=alpha, **PULL)
        self.kept = [self._record(i) for i in range(COUNT)]

    def _record(self, i: int) -> dict:
        guider = self.data.demo.guider(self.data.demo.model, 1.0, [plain_caption(self.data.scenes, i)])
        latent = {"samples": self.data.latent[i : i + 1]}
        return run_node(TrajectoryRecord, guider=guider, sigmas=self.sigmas, latent=latent)

    def sample(self, scenes: Scenes) -> Tensor:
        edited = []
        for i, kept in enumerate(self.kept):
            guider = self.data.demo.guider(self.model, CFG, [plain_caption(scenes, i)])
            source = self.data.demo.encode([plain_caption(self.data.scenes, i)])
            edited.append(run_node(TrajectoryReplay, guider=guider, trajectory=kept, source_prompt=source)["samples"])
        return torch.cat(edited)

    def spread(self) -> float:
        return self.data.spread(torch.cat([kept["samples"] for kept in self.kept]), self.sigmas)


Way = Exact | Ddim | Replay


def edits(data: Images, way: Way) -> str:
    """For each word: the share of images that show the new one and are otherwise as before, the rms change inside the
    mask of what is to change, and the one outside it."""
    cells = []
    for what in WORDS:
        scenes = data.changed(what)
        images = data.demo.decode(way.sample(scenes))
        found = found_in(images)
        right = found.right(scenes, "shape", "colour") & (found.floor == scenes.floor)
        mask = 1 - data.solids if what == "floor" else data.left
        inside, outside = measures.change(data.back, images, mask)
        cells.append(f"{100 * right.float().mean():.0f} % | {inside.mean():.3f} | {_within(outside)}")
    return " | ".join(cells)


def _within(error: Tensor) -> str:
    low, high = measures.bootstrap(error)
    return f"{error.mean():.3f} ({low:.3f} to {high:.3f})"


def row(data: Images, way: Way) -> None:
    again = way.sample(data.scenes).cpu()
    error = ((again - data.latent).abs().max() / data.latent.abs().max()).item()
    about = f"{data.family} | {way.name} | {len(way.sigmas) - 1} | {error:.1e} | {way.spread():.2f}"
    print_row(f"| {about} | {edits(data, way)} |")


def cost(data: Images) -> None:
    """Time of an evaluation relative to plain Euler."""
    small = data.demo.asking([plain_caption(data.scenes, i) for i in range(8)], 0)
    sigmas, latent = data.sigmas(1), data.latent[:8]
    guider = small.guider(small.model, CFG, small.captions)
    euler = partial(guider.sample, torch.randn(latent.shape), latent, comfy.samplers.sampler_object("euler"), sigmas)
    exact = partial(run_node, ExactInvert, guider=guider, sigmas=sigmas, latent={"samples": latent}, method="o-belm")
    times, steps = medians({"euler": partial(euler, disable_pbar=True, seed=0), "o-belm": exact}), len(sigmas) - 1
    euler, exact = times["euler"] / steps, times["o-belm"] / (steps + 1)
    print_row(f"| {data.family} | {1000 * euler:.1f} ms | {exact / euler:.2f} |")


def main() -> None:
    print(
        f"{COUNT} drawn images of {SOLIDS} solids, inverted with their captions and sampled with one word changed "
        f"(of the left solid, or the floor), {EVALUATIONS} evaluations there and as many back, strength {STRENGTH:g}, "
        f"cfg {CFG:g} in both. Error: largest, relative, of latents that come back with the same caption. Noise: its "
        f"standard "
        "deviation beside the level's. For each word: images that show the new caption | rms change inside the mask "
        "of "
        "what is to change | and outside it, farther than 4 pixels.\n"
    )
    print(
        "| model | method | steps | error | noise | colour | inside | outside | shape | inside | outside "
        "| floor | inside | outside |\n" + "|---" * 14 + "|"
    )
    with torch.inference_mode():
        for family in FAMILIES:
            data = Images(family)
            ways = {"DDIM": Ddim} | {method: partial(Exact, method=method) for method in METHODS}
            ways |= {f"replay, NegToMe {alpha:g}": partial(Replay, alpha=alpha) for alpha in PULLS}
            for name, way in ways.items():
                if asked(name):
                    row(data, way(data))
        print("\nTime of an evaluation, 8 images: Euler's, and that of o-belm beside it.\n")
        print("| model | euler | o-belm |\n|---|---|---|")
        for family in FAMILIES:
            cost(Images(family))


if __name__ == "__main__":
    main()
