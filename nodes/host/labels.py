"""What a classifier chooses among, and classifiers as the nodes hand them on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from .run import KEY

ClassifierType = io.Custom("GUIDEKIT_CLASSIFIER")
CandidatesType = io.Custom("GUIDEKIT_CANDIDATES")

Logits = Callable[[Tensor], Tensor]  # of pictures [B, 3, H, W], RGB in 0..1: [B, labels]


@dataclass(frozen=True)
class Label:
    """`word` names a class; `text` is the prompt, for classifiers that read."""

    word: str
    text: str


class Classifier(Protocol):
    patchers: tuple[ModelPatcher, ...]  # of its networks, to be loaded beside the diffusion model

    def among(self, labels: Sequence[Label]) -> Logits:
        """Raises ValueError for labels that it does not know."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """What a picture could be: the target first. `conditionings` are the host's lists."""

    labels: tuple[Label, ...]
    conditionings: tuple[list, ...]

    def __post_init__(self):
        words = [label.word for label in self.labels]
        if not all(words):
            raise ValueError("A candidate has no label. Give each a word that the classifier knows.")
        if twice := sorted({word for word in words if words.count(word) > 1}):
            raise ValueError(f"The candidates name {', '.join(map(repr, twice))} twice. Give each label once.")

    def check(self) -> None:
        """Raises ValueError where there is nothing to choose among."""
        if len(self.labels) < 2:
            raise ValueError(
                f"There is one candidate, {self.labels[0].word!r}. Give at least two: what the picture shall be, and "
                "what it could be taken for."
            )


def load_beside(model: ModelPatcher, classifier: Classifier, vae) -> None:
    """Networks that are asked in every step are loaded with the model when its run starts."""
    patchers = [*classifier.patchers, *([vae.patcher] if vae is not None else [])]
    model.set_additional_models(KEY, [*model.get_additional_models_with_key(KEY), *patchers])
