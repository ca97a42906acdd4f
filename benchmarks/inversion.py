"""From drawn pictures to noise and back, and with one word of the caption changed: `python dev.py bench inversion`."""

from functools import partial

import comfy.samplers
import torch
from comfy_extras.nodes_custom_sampler import BasicScheduler
from torch import Tensor

from ..demo import measures, pictures
from ..demo.judge import load_judge
from ..nodes.exact_invert import ExactInvert
from ..nodes.exact_sample import ExactSample
from ..nodes.host.inversion.exact_state import METHODS
from ..nodes.negtome import NegToMe
from ..nodes.trajectory_record import TrajectoryRecord
from ..nodes.trajectory_replay import TrajectoryReplay
from . import FAMILIES
from ._demo import Demo
from ._nodes import run_node
from ._table import print_row
from ._timing import medians

COUNT, EVALUATIONS, STRENGTH, CFG = 40, 50, 0.8, 3.0
PULL = {"threshold": -1.0, "steps": "start to end", "blocks": "all", "end_percent": 0.5}  # all tokens, half of the run
PULLS = (0.0, -0.3)
WORDS = {"colour": pictures.COLOURS, "shape": pictures.SHAPES, "background": pictures.BACKGROUNDS}


class Pictures:
    """Drawn pictures of a family's demo model, and their captions."""

    def __init__(self, family: str):
        self.family, self.demo = family, Demo(family, COUNT, seed=9000)
        self.scenes = self.demo.scenes
        self.drawn = pictures.draw(self.scenes)
        self.latent = self.demo.vae.encode(self.drawn.movedim(1, -1))

    def changed(self, what: str) -> pictures.Scenes:
        """One word further in the list."""
        old = getattr(self.scenes, what)
        return self.scenes._replace(**{what: (old + 1) % len(WORDS[what])})

    def guider(self, scenes: pictures.Scenes) -> comfy.samplers.CFGGuider:
        captions = [pictures.caption(scenes, i) for i in range(COUNT)]
        return self.demo.guider(self.demo.model, CFG, captions)

    def spread(self, latent: Tensor, sigmas: Tensor) -> float:
        """Standard deviation of the noise beside that of its level."""
        return (self.demo.model.model.process_latent_in(latent).std() / sigmas[0]).item()

    def sigmas(self, evaluations: int) -> Tensor:
        """The last part of a schedule, of so many steps that the run costs EVALUATIONS."""
        return BasicScheduler.execute(self.demo.model, "normal", EVALUATIONS // evaluations, STRENGTH)[0]


class Exact:
    def __init__(self, data: Pictures, method: str):
        self.data, self.name = data, method
        self.sigmas = data.sigmas(1 if method in ("bdia", "o-belm") else 2)
        given = {"guider": data.guider(data.scenes), "sigmas": self.sigmas, "latent": {"samples": data.latent}}
        self.inverted = run_node(ExactInvert, **given, method=method, p=0.0)

    def sample(self, scenes: pictures.Scenes) -> Tensor:
        return run_node(ExactSample, guider=self.data.guider(scenes), inverted=self.inverted)["samples"]

    def spread(self) -> float:
        return self.data.spread(self.inverted["samples"], self.sigmas)


class Ddim:
    """Euler backwards, with the prediction at the level that is stepped to, and Euler forwards."""

    name = "DDIM"

    def __init__(self, data: Pictures):
        self.data, self.sigmas = data, data.sigmas(1)
        self.noise = self._walk(data.scenes, data.latent, backwards=True)

    def sample(self, scenes: pictures.Scenes) -> Tensor:
        return self._walk(scenes, self.noise, backwards=False)

    def spread(self) -> float:
        return self.data.spread(self.noise, self.sigmas)

    def _walk(self, scenes: pictures.Scenes, x: Tensor, backwards: bool) -> Tensor:
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
    """Direct Inversion, one picture after the other: recorded at cfg 1, sampled beside itself with NegToMe pulling
    towards it."""

    def __init__(self, data: Pictures, alpha: float):
        self.data, self.sigmas, self.name = data, data.sigmas(1), f"replay, NegToMe {alpha:g}"
        self.model = run_node(NegToMe, model=data.demo.model, alpha=alpha, **PULL)
        self.kept = [self._record(i) for i in range(COUNT)]

    def _record(self, i: int) -> dict:
        guider = self.data.demo.guider(self.data.demo.model, 1.0, [pictures.caption(self.data.scenes, i)])
        latent = {"samples": self.data.latent[i : i + 1]}
        return run_node(TrajectoryRecord, guider=guider, sigmas=self.sigmas, latent=latent)

    def sample(self, scenes: pictures.Scenes) -> Tensor:
        edited = []
        for i, kept in enumerate(self.kept):
            guider = self.data.demo.guider(self.model, CFG, [pictures.caption(scenes, i)])
            source = self.data.demo.encode([pictures.caption(self.data.scenes, i)])
            edited.append(run_node(TrajectoryReplay, guider=guider, trajectory=kept, source_prompt=source)["samples"])
        return torch.cat(edited)

    def spread(self) -> float:
        return self.data.spread(torch.cat([kept["samples"] for kept in self.kept]), self.sigmas)


def object_of(scenes: pictures.Scenes) -> Tensor:
    """[n, 1, H, W]: where the object is: what another colour would change."""
    other = scenes._replace(colour=(scenes.colour + 3) % len(pictures.COLOURS))
    return ((pictures.draw(scenes) - pictures.draw(other)).abs().amax(1, keepdim=True) > 1e-4).float()


Way = Exact | Ddim | Replay


def edits(data: Pictures, way: Way) -> str:
    """For each word: share of pictures that have the new one, share of those whose other two are as they were, and the
    mean error of the pixels that should not have changed."""
    cells = []
    for what in WORDS:
        scenes = data.changed(what)
        images = data.demo.decode(way.sample(scenes))
        judged = load_judge()(images)
        new = judged[what].argmax(1) == getattr(scenes, what)
        kept = torch.stack([judged[k].argmax(1) == getattr(scenes, k) for k in WORDS if k != what]).all(0)
        still = 1 - torch.maximum(object_of(data.scenes), object_of(scenes))
        if what == "background":
            still = object_of(data.scenes)
        error = ((images - data.drawn).abs() * still).sum((1, 2, 3)) / (3 * still.sum((1, 2, 3)).clamp_min(1))
        low, high = measures.bootstrap(error)
        cells.append(
            f"{100 * new.float().mean():.0f} % | {100 * kept.float().mean():.0f} % | "
            f"{error.mean():.3f} ({low:.3f} to {high:.3f})"
        )
    return " | ".join(cells)


def row(data: Pictures, way: Way) -> None:
    again = way.sample(data.scenes)
    error = ((again - data.latent).abs().max() / data.latent.abs().max()).item()
    about = f"{data.family} | {way.name} | {len(way.sigmas) - 1} | {error:.1e} | {way.spread():.2f}"
    print_row(f"| {about} | {edits(data, way)} |")


def cost(data: Pictures) -> None:
    """Time of an evaluation beside plain Euler's."""
    small = data.demo.asking([pictures.caption(data.scenes, i) for i in range(8)], 0)
    sigmas, latent = data.sigmas(1), data.latent[:8]
    guider = small.guider(small.model, CFG, small.captions)
    euler = partial(guider.sample, torch.randn(latent.shape), latent, comfy.samplers.sampler_object("euler"), sigmas)
    exact = partial(run_node, ExactInvert, guider=guider, sigmas=sigmas, latent={"samples": latent}, method="o-belm")
    times, steps = medians({"euler": partial(euler, disable_pbar=True, seed=0), "o-belm": exact}), len(sigmas) - 1
    euler, exact = times["euler"] / steps, times["o-belm"] / (steps + 1)
    print_row(f"| {data.family} | {1000 * euler:.1f} ms | {exact / euler:.2f} |")


def main() -> None:
    print(
        f"{COUNT} drawn pictures, inverted with their captions and sampled with one word changed, {EVALUATIONS} "
        f"evaluations there and as many back, strength {STRENGTH:g}, cfg {CFG:g} in both. Error: largest, relative, of "
        "latents that come back with the same caption. Noise: its standard deviation beside the level's. For each "
        "word: pictures that have the new one | whose other two are as they were | error of the pixels that should not "
        "change.\n"
    )
    print(
        "| model | method | steps | error | noise | colour | others | pixels | shape | others | pixels "
        "| background | others | pixels |\n" + "|---" * 14 + "|"
    )
    with torch.inference_mode():
        for family in FAMILIES:
            data = Pictures(family)
            row(data, Ddim(data))
            for method in METHODS:
                row(data, Exact(data, method))
            for alpha in PULLS:
                row(data, Replay(data, alpha))
        print("\nTime of an evaluation, 8 pictures: Euler's, and that of o-belm beside it.\n")
        print("| model | euler | o-belm |\n|---|---|---|")
        for family in FAMILIES:
            cost(Pictures(family))


if __name__ == "__main__":
    main()
