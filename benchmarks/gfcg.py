"""Gradient-Free Classifier Guidance beside CFG: `python dev.py bench gfcg`.

At the same effective scale and at the same number of evaluations, with the cost of decoding. The judge has never
guided: the classifier that does is another network (demo/world/classifier.py).
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..demo import measures
from ..demo.world import models
from ..demo.world.captions import plain_caption
from ..demo.world.render import SIZE
from ..demo.world.scenes import MATERIALS, SHAPES, generator_of, random_scenes
from ..nodes.elucd import EluCD
from ..nodes.gfcg import GFCG, SWAP
from ..nodes.host.classifiers.labels import Candidates, Label
from ..nodes.image_classifier import ImageClassifier
from . import FAMILIES
from ._decoding import table as decoding_table
from ._demo import Demo, count_evaluations, drawn, found_in, measure_scale
from ._nodes import run_node
from ._quality import asked
from ._table import print_row

COUNT, STEPS = 500, 15
BATCH = 100
RIVALS = (2.0, 3.0, 5.0)  # of CFG, for models that are guided by nothing else
# For each model the word that is guided, and a scale of CFG at which the model often gets it wrong.
CASES = {"unet_early": ("shape", 3.0), "unet": ("material", 1.0), "dit": ("material", 1.0)}
WORDS = {"shape": SHAPES, "material": MATERIALS}
OTHERS = ("shape", "colour", "material", "extent")
SOME = {
    "GFCG 5": {"scale": 5.0},
    "GFCG 10": {"scale": 10.0},
    "GFCG 5, use_previous_step": {"scale": 5.0, "use_previous_step": True},
}
MORE = {
    "GFCG 2": {"scale": 2.0},
    "GFCG 5": {"scale": 5.0},
    "GFCG 5, every 3rd step": {"scale": 5.0, "classifier_interval": 3},
    "GFCG 5, use_previous_step": {"scale": 5.0, "use_previous_step": True},
    "GFCG for the negative": {"combination": SWAP},
}


Guide = Callable[[ModelPatcher, int, Tensor], ModelPatcher]  # of the model, the word, the numbers of the captions


@cache
def drawn_features() -> Tensor:
    scenes = random_scenes(2000, generator_of("evaluation", 123), "known", 1)
    return found_in(drawn(scenes)).features


@dataclass
class Result:
    """Results of one setting; `scale` is omega_e, `evaluations` are per image."""

    name: str
    right: Tensor
    others: Tensor
    frechet: float
    saturation: float
    scale: float
    evaluations: float

    def row(self, model: str) -> str:
        low, high = measures.bootstrap(self.right.float())
        right, others = (100 * each.float().mean() for each in (self.right, self.others))
        return (
            f"| {model} | {self.name} | {self.scale:.2f} | {self.evaluations:.1f} | {right:.1f} % ({100 * low:.1f} to "
            f"{100 * high:.1f}) | {others:.1f} % | {self.frechet:.2f} | {self.saturation:.3f} |"
        )


class Bench:
    def __init__(self, model: str, count: int = COUNT):
        self.name, (self.word, self.cfg) = model, CASES[model]
        self.demo = Demo(model, count, seed=4000, solids=1, each=1)
        self.scenes = self.demo.scenes  # of one solid
        self.classifier = run_node(ImageClassifier, file="demo")

    def run(self, name: str, cfg: float, steps: int = STEPS, guide: Guide = lambda model, *_: model) -> Result:
        """Samples all captions, those of one word together, because they have the same candidates."""
        target = getattr(self.scenes, self.word)[:, 0]
        images = torch.zeros(len(target), 3, SIZE, SIZE)
        along, square, evaluations = 0.0, 0.0, 0
        for word in range(len(WORDS[self.word])):
            mine = (target == word).nonzero()[:, 0]
            for some in mine.split(BATCH):
                model = guide(self.demo.model.clone(), word, some)
                counted, measured = count_evaluations(model), measure_scale(model)
                images[some] = self.sample(model, cfg, steps, some)
                along, square = along + sum(measured.along), square + sum(measured.square)
                evaluations += counted.count
        scale = (along / square).item() if isinstance(square, Tensor) else cfg
        return self.judged(name, images, scale, evaluations / len(target))

    def gfcg(self, settings: dict) -> Guide:
        def guide(model, word, some):
            given = {"classifier": self.classifier, "candidates": self.candidates(word, some), **settings}
            return run_node(GFCG, model=model, **given)

        return guide

    def candidates(self, word: int, some: Tensor) -> Candidates:
        """The target word and the others, in the captions of some images."""
        words = WORDS[self.word]
        order = [word, *(i for i in range(len(words)) if i != word)]
        labels = tuple(Label(words[i], words[i]) for i in order)
        every = torch.ones_like(self.scenes.shape)
        scenes = [dataclasses.replace(self.scenes, **{self.word: i * every}) for i in order]
        captions = [[plain_caption(s, i) for i in some.tolist()] for s in scenes]
        return Candidates(labels, tuple(map(self.demo.encode, captions)))

    def sample(self, model, cfg: float, steps: int, some: Tensor) -> Tensor:
        asked = self.demo.asking([self.demo.captions[i] for i in some.tolist()], 0)
        noise = self.demo.noise()[some]
        asked.noise = lambda: noise
        return asked.sample(model, cfg, steps, batch=BATCH)

    def judged(self, name: str, images: Tensor, scale: float, evaluations: float) -> Result:
        found = found_in(images)
        right = found.right(self.scenes, self.word)
        others = found.right(self.scenes, *(k for k in OTHERS if k != self.word))
        frechet = measures.frechet(found.features, drawn_features())
        return Result(name, right, others, frechet, measures.saturation(images).mean().item(), scale, evaluations)


def table(model: str, count: int = COUNT) -> None:
    bench = Bench(model, count)
    plain = bench.run(f"CFG {bench.cfg:g}", bench.cfg)
    print_row(plain.row(model))
    rivals = (bench.cfg,) if bench.cfg != 1 else RIVALS
    done = {(bench.cfg, STEPS)}
    for name, settings in (SOME if bench.cfg == 1 else MORE).items():
        if not asked(name):
            continue
        found = bench.run(name, bench.cfg, guide=bench.gfcg(settings))
        print_row(found.row(model))
        if abs(found.scale - bench.cfg) > 0.1:
            print_row(bench.run(f"CFG {found.scale:.2f}, the same scale", found.scale).row(model))
        for cfg in rivals:
            steps = round(found.evaluations / 2)
            if (cfg, steps) not in done:
                done.add((cfg, steps))
                print_row(bench.run(f"CFG {cfg:g}, {steps} steps", cfg, steps).row(model))


def elucd(model: str, count: int = COUNT) -> None:
    """EluCD on the same word."""
    bench = Bench(model, count)
    words = WORDS[bench.word]
    print_row(bench.run(f"CFG {bench.cfg:g}", bench.cfg).row(model))
    for settings in ({"scale": 0.1}, {"scale": 0.3}, {"scale": 0.3, "tau_2": 1.0}, {"scale": 1.0}):
        about = ", ".join(f"{name} {value:g}" for name, value in settings.items())

        def guide(model, word, some, settings=settings):
            given = {"classifier": bench.classifier, "target": words[word], "vae": bench.demo.vae, **settings}
            return run_node(EluCD, model=model, **given)

        print_row(bench.run(f"EluCD, {about}", bench.cfg, guide=guide).row(model))


HEAD = "| model | | omega_e | evaluations | right | others | Fréchet | saturation |\n" + "|---" * 8 + "|"


def main() -> None:
    print(
        f"{COUNT} captions of one solid, {STEPS} steps of euler. Right: images with one solid whose "
        f"{' or '.join(WORDS)} is the caption's, with the 95 % bootstrap interval; others: whose other words are. "
        f"Evaluations are per image.\n"
    )
    with torch.inference_mode():
        print(HEAD)
        for model in CASES:
            if models.family_of(model) in FAMILIES:
                table(model)
        if not asked("EluCD"):
            return
        print(f"\nEluCD, {COUNT} captions.\n\n" + HEAD)
        for model in FAMILIES:
            elucd(model)
        decoding_table()


if __name__ == "__main__":
    main()
