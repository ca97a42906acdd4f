"""Classifiers and candidates for the tests."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from comfy.model_patcher import ModelPatcher

from guidekit.demo.world.classifier import shapes
from guidekit.nodes.host.classifiers.image import ImageClassifier
from guidekit.nodes.host.classifiers.labels import Candidates, Label
from guidekit.samplers.classifiers.resnet import ResNet
from guidekit.tests.host import tiny

WORDS = ("cat", "dog", "fox", "owl")
SEEDS = (11, 31, 32, 33)  # of their prompts; the first is the positive's


def labels(*words: str) -> tuple[Label, ...]:
    return tuple(Label(word, f"a photo of a {word}") for word in words)


def candidates(family: str, words: Sequence[str] = WORDS, tokens: Sequence[int] = (7, 7, 7, 7)) -> Candidates:
    """The first is what `tiny.sample` is given as the positive."""
    prompts = [tiny.conditioning(family, SEEDS[WORDS.index(w)], tokens[WORDS.index(w)]) for w in words]
    return Candidates(labels(*words), tuple(prompts))


@cache
def _network() -> ResNet:
    found = ResNet(shapes((16, 24, 40, 64), len(WORDS)))
    generator = torch.Generator().manual_seed(4)
    for parameter in found.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return found.eval().requires_grad_(False)


def classifier(size: int = 32, device: torch.device = torch.device("cpu")) -> ImageClassifier:  # noqa: B008 immutable
    """A ResNet with random weights that knows the words."""
    patcher = ModelPatcher(_network(), load_device=device, offload_device=torch.device("cpu"))
    tiny.HANDED_OUT.append(patcher)
    return ImageClassifier("tiny", patcher, WORDS, size, (0.5,) * 3, (0.5,) * 3)


@dataclass(eq=False)
class Says:
    """A classifier that says what the test wants: `say(call, images)` are the logits [B, labels]."""

    say: Callable[[int, torch.Tensor], torch.Tensor]
    calls: int = 0
    patchers: tuple = ()

    def among(self, wanted):
        self.labels = wanted
        return self

    def __call__(self, images):
        self.calls += 1
        return self.say(self.calls - 1, images)


def always(*probabilities: float) -> Says:
    """The same for every image."""
    logits = torch.tensor([probabilities]).log()
    return Says(lambda call, images: logits.expand(len(images), -1))


def each(*rows: tuple[float, ...]) -> Says:
    """A classifier that gives image b the probabilities `rows[b]`."""
    return Says(lambda call, images: torch.tensor(rows).log())


def by_step(*rows: tuple[float, ...]) -> Says:
    """In step i, the probabilities `rows[i]` for all images."""
    return Says(lambda call, images: torch.tensor([rows[call]]).log().expand(len(images), -1))
