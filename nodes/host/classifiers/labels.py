"""What a classifier chooses among, and classifiers as the nodes hand them on."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..run import loaded_beside as beside
from ..run.messages import quoted

ClassifierType = io.Custom("GUIDEKIT_CLASSIFIER")
CandidatesType = io.Custom("GUIDEKIT_CANDIDATES")

_MOST = 1000  # candidates
Logits = Callable[[Tensor], Tensor]  # of images [B, 3, H, W], RGB in 0..1: [B, labels]


@dataclass(frozen=True)
class Label:
    """`word` names a class; `text` is the prompt, for classifiers that read."""

    word: str
    text: str


class Classifier(Protocol):
    @property
    def patchers(self) -> tuple[ModelPatcher, ...]:
        """Of its networks, to be loaded beside the diffusion model."""

    def among(self, labels: Sequence[Label]) -> Logits:
        """Raises ValueError for labels that it does not know."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """What an image could be: the target first. `conditionings` are the host's lists."""

    labels: tuple[Label, ...]
    conditionings: tuple[list, ...]

    def __post_init__(self):
        check_labels(self.labels)

    def check(self) -> None:
        """Raises ValueError where there is nothing to choose among."""
        if len(self.labels) < 2:
            raise ValueError(
                f"There is one candidate, {quoted(self.labels[0].word)}. Give at least two: what the image shall be, "
                "and what it could be taken for."
            )


def check_labels(labels: Sequence[Label]) -> None:
    """Raises ValueError for what is no list of candidates; before prompts are encoded, which takes time."""
    if len(labels) > _MOST:
        raise ValueError(f"There are {len(labels)} candidates. There may be up to {_MOST}, as ImageNet has classes.")
    if not all(label.word for label in labels):
        raise ValueError("A candidate has no label. Give each a word that the classifier knows.")
    counts = Counter(label.word for label in labels)
    if twice := sorted(word for word, count in counts.items() if count > 1):
        raise ValueError(f"The candidates name {', '.join(map(quoted, twice[:5]))} twice. Give each label once.")


def load_beside(model: ModelPatcher, classifier: Classifier, vae) -> None:
    """Networks that are asked in every step are loaded with the model when its run starts."""
    beside.load_beside(model, [*classifier.patchers, *([vae.patcher] if vae is not None else [])])
