"""Image classifiers from files: ResNets in torchvision's layout, with the names of their classes.

Relies on: `folder_paths` keeping a folder `classifiers` (folder_paths.py:53); ModelPatcher moving any module
(comfy/model_patcher.py).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...samplers.classifiers.resnet import ResNet, load_resnet
from ...samplers.safetensors_header import read_header
from .files import Folder
from .labels import Label, Logits
from .tensors import read_tensors

CLASSIFIERS = Folder("models/classifiers", lambda: folder_paths.get_folder_paths("classifiers"))
# What torchvision's weights were trained with.
_SIZE, _MEAN, _STD = 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, eq=False)
class ImageClassifier:
    """`labels`: of its classes; `size`: the side of the square that it is given, of which `mean` and `std` of each
    channel are taken away."""

    name: str
    patcher: ModelPatcher
    labels: tuple[str, ...]
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def patchers(self) -> tuple[ModelPatcher, ...]:
        return (self.patcher,)

    @property
    def network(self) -> ResNet:
        return self.patcher.model

    def index(self, word: str) -> int:
        """Of a class. Raises ValueError for one that it does not know."""
        if word not in self.labels:
            known = ", ".join(self.labels[:20]) + (", ..." if len(self.labels) > 20 else "")
            raise ValueError(f"The classifier {self.name} knows no {word!r}. It knows {len(self.labels)}: {known}.")
        return self.labels.index(word)

    def among(self, labels: Sequence[Label]) -> Logits:
        return _Some(self, [self.index(label.word) for label in labels])

    def logits(self, pictures: Tensor, beta: float | None = None) -> Tensor:
        """[B, classes]; `beta`: see samplers/classifiers/resnet.py."""
        comfy.model_management.load_model_gpu(self.patcher)
        return self.network(self.prepared(pictures), beta)

    def prepared(self, pictures: Tensor) -> Tensor:
        """As the network takes them: the middle square, resized, normalised."""
        pictures = pictures.to(self.patcher.load_device, torch.float32)
        side = min(pictures.shape[-2:])
        top, left = ((length - side) // 2 for length in pictures.shape[-2:])
        square = pictures[..., top : top + side, left : left + side]
        if side != self.size:
            square = torch.nn.functional.interpolate(square, (self.size, self.size), mode="bilinear", antialias=True)
        mean, std = (square.new_tensor(each).reshape(1, 3, 1, 1) for each in (self.mean, self.std))
        return (square - mean) / std


@dataclass(frozen=True)
class _Some:
    """The logits of some classes."""

    classifier: ImageClassifier
    index: list[int]

    def __call__(self, pictures: Tensor) -> Tensor:
        return self.classifier.logits(pictures)[:, self.index]


def load_classifier(path: Path, labels: str | None = None) -> ImageClassifier:
    """From a safetensors file; its class names are `labels`, a line each, or those in its metadata, or in a file beside
    it, `.txt` with a line each or `.json` with a list or a dict from numbers to names.

    Raises:
        ValueError: it is not such a file.
    """
    name, header = path.name, read_header(path)
    said = header.metadata
    try:
        with torch.device("meta"):  # the shapes tell whether it is one, before any weight is read
            ResNet({key: torch.Size(entry.shape) for key, entry in header.tensors.items()})
        size, mean, std = int(said.get("size", _SIZE)), _three(said.get("mean"), _MEAN), _three(said.get("std"), _STD)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    weights = read_tensors(path, {key: key for key in header.tensors})
    try:
        network = load_resnet(weights)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    names = _names(path, said, labels)
    if len(names) != network.classes:
        raise ValueError(f"{name} has {network.classes} classes, and there are {len(names)} labels for them.")
    device, offload = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    return ImageClassifier(name, ModelPatcher(network, device, offload), names, size, mean, std)


def _names(path: Path, said: dict[str, str], labels: str | None) -> tuple[str, ...]:
    for text in (labels, said.get("labels")):
        if text:
            return _lines(text)
    if (beside := path.with_suffix(".txt")).is_file():
        return _lines(beside.read_text("utf-8"))
    if (beside := path.with_suffix(".json")).is_file():
        return _of_json(beside)
    raise ValueError(
        f"{path.name} says no names of its classes. Put {path.stem}.txt beside it, with a line for each class in "
        "order, or give them in the node."
    )


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines())


def _of_json(path: Path) -> tuple[str, ...]:
    try:
        found = json.loads(path.read_text("utf-8"))
        if isinstance(found, dict):
            found = [found[str(i)] for i in range(len(found))]
        if isinstance(found, list) and all(isinstance(name, str) for name in found):
            return tuple(found)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError) as error:
        raise ValueError(f"{path.name} cannot be read: {error}.") from error
    raise ValueError(f"{path.name} is not a list of names, and not a dict from numbers to names.")


def _three(text: str | None, default: tuple[float, ...]) -> tuple[float, ...]:
    found = tuple(map(float, text.split())) if text else default
    if len(found) != 3:
        raise ValueError(f"mean and std have a number for each of R, G and B, not {text!r}")
    return found
