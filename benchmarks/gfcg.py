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
from ..demo.world.captions import plain_caption
from ..demo.world.render import SIZE
from ..demo.world.scenes import MATERIALS, generator_of, random_scenes
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
WORD, WORDS = "material", MATERIALS  # what both models often get wrong
OTHERS = ("shape", "colour", "extent")
ALONE = {  # at cfg 1
    "GFCG 5": {"scale": 5.0},
    "GFCG 10": {"scale": 10.0},
    "GFCG 5, use_previous_step": {"scale": 5.0, "use_previous_step": True},
}
BESIDE_CFG = {  # at cfg 3
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
    def __init__(self, model: str):
        self.name, self.demo = model, Demo(model, COUNT, seed=4000, solids=1, each=1)
        self.scenes = self.demo.scenes  # of one solid
        self.classifier = run_node(ImageClassifier, file="demo")

    def run(self, name: str, cfg: float, steps: int = STEPS, guide: Guide = lambda model, *_: model) -> Result:
        """Samples all captions, those of one word together, because they have the same candidates."""
        target = getattr(self.scenes, WORD)[:, 0]
        images = torch.zeros(len(target), 3, SIZE, SIZE)
        along, square, evaluations = 0.0, 0.0, 0
        for word in range(len(WORDS)):
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
        order = [word, *(i for i in range(len(WORDS)) if i != word)]
        labels = tuple(Label(WORDS[i], WORDS[i]) for i in order)
        every = torch.ones_like(self.scenes.shape)
        scenes = [dataclasses.replace(self.scenes, **{WORD: i * every}) for i in order]
        captions = [[plain_caption(s, i) for i in some.tolist()] for s in scenes]
        return Candidates(labels, tuple(map(self.demo.encode, captions)))

    def sample(self, model, cfg: float, steps: int, some: Tensor) -> Tensor:
        asked = self.demo.asking([self.demo.captions[i] for i in some.tolist()], 0)
        noise = self.demo.noise()[some]
        asked.noise = lambda: noise
        return asked.sample(model, cfg, steps, batch=BATCH)

    def judged(self, name: str, images: Tensor, scale: float, evaluations: float) -> Result:
        found = found_in(images)
        right, others = found.right(self.scenes, WORD), found.right(self.scenes, *OTHERS)
        frechet = measures.frechet(found.features, drawn_features())
        return Result(name, right, others, frechet, measures.saturation(images).mean().item(), scale, evaluations)


def table(bench: Bench, cfg: float, ways: dict[str, dict]) -> None:
    """GFCG at this cfg beside CFG at its omega_e, and beside CFG in as many evaluations."""
    print_row(bench.run(f"CFG {cfg:g}", cfg).row(bench.name))
    rivals = RIVALS if cfg == 1 else (cfg,)
    done = {(cfg, STEPS)}
    for name, settings in ways.items():
        if not asked(name):
            continue
        found = bench.run(name, cfg, guide=bench.gfcg(settings))
        print_row(found.row(bench.name))
        if abs(found.scale - cfg) > 0.1:
            print_row(bench.run(f"CFG {found.scale:.2f}, the same scale", found.scale).row(bench.name))
        steps = round(found.evaluations / 2)
        for rival in rivals:
            if (rival, steps) not in done:
                done.add((rival, steps))
                print_row(bench.run(f"CFG {rival:g}, {steps} steps", rival, steps).row(bench.name))


def elucd(bench: Bench) -> None:
    print_row(bench.run("CFG 1", 1.0).row(bench.name))
    for settings in ({"scale": 0.1}, {"scale": 0.3}, {"scale": 0.3, "tau_2": 1.0}, {"scale": 1.0}):
        about = ", ".join(f"{name} {value:g}" for name, value in settings.items())

        def guide(model, word, some, settings=settings):
            given = {"classifier": bench.classifier, "target": WORDS[word], "vae": bench.demo.vae, **settings}
            return run_node(EluCD, model=model, **given)

        print_row(bench.run(f"EluCD, {about}", 1.0, guide=guide).row(bench.name))


HEAD = "| model | | omega_e | evaluations | right | others | Fréchet | saturation |\n" + "|---" * 8 + "|"


def main() -> None:
    print(
        f"{COUNT} captions of one solid, {STEPS} steps of euler. Right: images with one solid whose {WORD} is the "
        "caption's, with the 95 % bootstrap interval; others: whose other words are. Evaluations are per image.\n"
    )
    benches = [Bench(model) for model in FAMILIES]
    with torch.inference_mode():
        for cfg, ways in ((1.0, ALONE), (3.0, BESIDE_CFG)):
            print(f"\nGFCG, cfg {cfg:g}.\n\n" + HEAD)
            for bench in benches:
                table(bench, cfg, ways)
        if asked("EluCD"):
            print("\nEluCD, cfg 1.\n\n" + HEAD)
            for bench in benches:
                elucd(bench)
            decoding_table()


if __name__ == "__main__":
    main()
