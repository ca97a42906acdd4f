"""Image classifiers from files: ResNets in torchvision's layout, with the names of their classes.

Relies on: the folder `classifiers` of `folder_paths` (folder_paths.py:53); ModelPatcher being able to move any module
between devices (comfy/model_patcher.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shown

import comfy.model_management
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....samplers.classifiers.resnet import ResNet, load_resnet, plan_resnet
from ....samplers.sending import sent
from ..files.folders import Folder
from ..files.safetensors_header import read_header
from ..files.tensors import FLOATS, read_tensors
from .class_names import class_names
from .labels import Label, Logits

CLASSIFIERS = Folder("models/classifiers", lambda: folder_paths.get_folder_paths("classifiers"))
# The preprocessing of torchvision's weights.
_DEFAULTS = {"size": "224", "mean": "0.485 0.456 0.406", "std": "0.229 0.224 0.225"}
_LARGEST = 2048


@dataclass(frozen=True, eq=False)
class ImageClassifier:
    """A ResNet with its preprocessing. `labels`: the names of its classes; `size`: the side of its square input in
    pixels; `mean`, `std`: those of R, G and B, by which images in 0..1 are normalised."""

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
        """The number of the class `word`.

        Raises:
            ValueError: it has no such class.
        """
        if word not in self.labels:
            known = ", ".join(self.labels[:20]) + (", ..." if len(self.labels) > 20 else "")
            raise ValueError(f"The classifier {self.name} has no class {word!r}. It has {len(self.labels)}: {known}.")
        return self.labels.index(word)

    def among(self, labels: Sequence[Label]) -> Logits:
        return _Some(self, [self.index(label.word) for label in labels])

    def logits(self, images: Tensor, beta: float | None = None) -> Tensor:
        """Logits [B, classes] of `images` [B, 3, H, W], RGB in 0..1; `beta`: see samplers/classifiers/resnet.py."""
        comfy.model_management.load_model_gpu(self.patcher)
        return self.network(self.prepared(images), beta)

    def prepared(self, images: Tensor) -> Tensor:
        """`images` [B, 3, H, W] as the network's input: the middle square, resized and normalised."""
        images = images.to(self.patcher.load_device, torch.float32)
        side = min(images.shape[-2:])
        top, left = ((length - side) // 2 for length in images.shape[-2:])
        square = images[..., top : top + side, left : left + side]
        if side != self.size:
            square = torch.nn.functional.interpolate(square, (self.size, self.size), mode="bilinear", antialias=True)
        mean, std = (sent(torch.tensor(each), square.device).reshape(1, 3, 1, 1) for each in (self.mean, self.std))
        return (square - mean) / std


@dataclass(frozen=True)
class _Some:
    """The logits of some of the classes: the `Logits` of an `ImageClassifier`."""

    classifier: ImageClassifier
    index: list[int]

    def __call__(self, images: Tensor) -> Tensor:
        logits = self.classifier.logits(images)
        return logits.index_select(1, sent(torch.tensor(self.index), logits.device))


def load_classifier(path: Path, labels: str | None = None) -> ImageClassifier:
    """The classifier in a safetensors file, whose metadata may have `size`, `mean` and `std`. `labels`: the names of
    its classes, one per line; None to find them as `class_names` does.

    Raises:
        ValueError: the file is not a ResNet in torchvision's layout, or its classes have no names.
    """
    name, header = path.name, read_header(path)
    said, tensors = header.metadata, header.tensors
    try:
        size, mean, std = _size(said), _three(said, "mean", -1e3), _three(said, "std", 1e-3)
        # The shapes show whether it is a ResNet, before any weights are read.
        plan_resnet({key: entry.shape for key, entry in tensors.items()}, size)
        for key, entry in tensors.items():
            if entry.dtype not in FLOATS and not key.endswith("num_batches_tracked"):
                raise ValueError(f"{key} is in {entry.dtype}; weights are in {', '.join(FLOATS)}")
    except ValueError as error:
        raise ValueError(f"{name}: {error}.") from error
    network = load_resnet(read_tensors(path, {key: key for key in tensors}))
    names = class_names(path, said, labels)
    if len(names) != network.classes:
        raise ValueError(f"{name} has {network.classes} classes, and there are {len(names)} labels for them.")
    device, offload = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    return ImageClassifier(name, ModelPatcher(network, device, offload), names, size, mean, std)


def _size(said: dict[str, str]) -> int:
    text = said.get("size") or _DEFAULTS["size"]
    try:
        size = int(text)
    except ValueError:
        size = 0
    if not 1 <= size <= _LARGEST:
        raise ValueError(f"its size is {shown(text)}; the side of a square that it is given has 1 to {_LARGEST} pixels")
    return size


def _three(said: dict[str, str], what: str, least: float) -> tuple[float, ...]:
    text = said.get(what) or _DEFAULTS[what]
    try:
        found = tuple(map(float, text.split()))
    except ValueError:
        found = ()
    if len(found) != 3 or not all(least <= value <= 1e3 for value in found):
        raise ValueError(f"its {what} is {shown(text)}; R, G and B have a number each, from {least:g} to 1000")
    return found
