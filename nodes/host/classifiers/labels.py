"""The candidates that a classifier chooses among, and the interface of classifiers."""

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
Logits = Callable[[Tensor], Tensor]  # images [B, 3, H, W], RGB in 0..1, to logits [B, labels]


@dataclass(frozen=True)
class Label:
    """A candidate. `word`: the name of its class; `text`: its prompt, for classifiers that compare with texts."""

    word: str
    text: str


class Classifier(Protocol):
    """A classifier of images, as nodes pass it on (GUIDEKIT_CLASSIFIER)."""

    @property
    def patchers(self) -> tuple[ModelPatcher, ...]:
        """The patchers of its networks, to be loaded beside the diffusion model."""

    def among(self, labels: Sequence[Label]) -> Logits:
        """The logits of `labels`, in this order.

        Raises:
            ValueError: it has no class for a label.
        """


@dataclass(frozen=True, eq=False)
class Candidates:
    """The candidates for an image, the target first. `conditionings`: their prompts, in the host's form.

    Raises:
        ValueError: see `check_labels`.
    """

    labels: tuple[Label, ...]
    conditionings: tuple[list, ...]

    def __post_init__(self):
        check_labels(self.labels)

    def check(self) -> None:
        """Checks that there is something to choose.

        Raises:
            ValueError: there is one candidate alone.
        """
        if len(self.labels) < 2:
            raise ValueError(
                f"There is one candidate, {quoted(self.labels[0].word)}. Give at least two: what the image shall be, "
                "and what it could be taken for."
            )


def check_labels(labels: Sequence[Label]) -> None:
    """Checks the labels of candidates; called before their prompts are encoded, which takes time.

    Raises:
        ValueError: there are too many, or one is empty or given twice.
    """
    if len(labels) > _MOST:
        raise ValueError(f"There are {len(labels)} candidates. There may be up to {_MOST}, as ImageNet has classes.")
    if not all(label.word for label in labels):
        raise ValueError("A candidate has no label. Give each a word that the classifier knows.")
    counts = Counter(label.word for label in labels)
    if twice := sorted(word for word, count in counts.items() if count > 1):
        raise ValueError(f"The candidates name {', '.join(map(quoted, twice[:5]))} twice. Give each label once.")


def load_beside(model: ModelPatcher, classifier: Classifier, vae) -> None:
    """Loads the networks of `classifier`, and `vae` if it is not None, together with a (cloned) model, since they are
    used in every step."""
    beside.load_beside(model, [*classifier.patchers, *([vae.patcher] if vae is not None else [])])
