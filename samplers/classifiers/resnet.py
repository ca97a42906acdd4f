"""ResNets (He, Zhang, Ren, Sun: "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv 1512.03385) in
torchvision's layout of names, of any depth, width and number of classes: what a state dict has is built.

The names are those of torchvision's resnet18 to resnet152 and wide_resnet: conv1, bn1, layerN.M.convK, layerN.M.bnK,
layerN.M.downsample, fc. The second 3x3 convolution of a bottleneck carries the stride, as there.
"""

import re

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


def activation(x: Tensor, beta: float | None) -> Tensor:
    """ReLU, or log(1 + exp(beta x)) / beta, which has gradients where ReLU has none (EluCD, arXiv 2310.11311)."""
    return F.relu(x) if beta is None else F.softplus(x, beta)


class _Block(nn.Module):
    """Two 3x3 convolutions, or 1x1, 3x3, 1x1; their shapes are `convolutions` [out, in, k, k], in order."""

    def __init__(self, convolutions: list[torch.Size], stride: int, shortcut: torch.Size | None):
        super().__init__()
        self.count = len(convolutions)
        strided = 0 if self.count == 2 else 1
        for i, (o, n, k, _) in enumerate(convolutions):
            conv = nn.Conv2d(n, o, k, stride if i == strided else 1, k // 2, bias=False)
            self.add_module(f"conv{i + 1}", conv)
            self.add_module(f"bn{i + 1}", nn.BatchNorm2d(o))
        self.downsample = None
        if shortcut is not None:
            o, n, k, _ = shortcut
            self.downsample = nn.Sequential(nn.Conv2d(n, o, k, stride, bias=False), nn.BatchNorm2d(o))

    def forward(self, x: Tensor, beta: float | None) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        for i in range(1, self.count + 1):
            x = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x))
            x = activation(x if i < self.count else x + shortcut, beta)
        return x


class ResNet(nn.Module):
    """`shapes`: of a state dict, by name.

    Raises:
        ValueError: they are not those of a ResNet.
    """

    def __init__(self, shapes: dict[str, torch.Size]):
        super().__init__()
        try:
            o, n, k, _ = shapes["conv1.weight"]
            self.conv1 = nn.Conv2d(n, o, k, 2, k // 2, bias=False)
            self.bn1 = nn.BatchNorm2d(o)
            self.stages = [
                name for name in ("layer1", "layer2", "layer3", "layer4") if f"{name}.0.conv1.weight" in shapes
            ]
            for name in self.stages:
                self.add_module(name, nn.ModuleList(_blocks(name, shapes)))
            self.fc = nn.Linear(*reversed(shapes["fc.weight"]))
        except (KeyError, ValueError, TypeError) as error:
            raise ValueError(f"these are not the weights of a ResNet in torchvision's layout: {error}") from error

    @property
    def classes(self) -> int:
        return self.fc.out_features

    def forward(self, x: Tensor, beta: float | None = None) -> Tensor:
        """Logits [B, classes] of normalised pictures [B, 3, H, W]; `beta`: of `activation`."""
        x = F.max_pool2d(activation(self.bn1(self.conv1(x)), beta), 3, 2, 1)
        for name in self.stages:
            for block in getattr(self, name):
                x = block(x, beta)
        return self.fc(x.mean((2, 3)))


def _blocks(stage: str, shapes: dict[str, torch.Size]) -> list[_Block]:
    pattern = re.compile(rf"{stage}\.(\d+)\.conv\d+\.weight")
    count = len({match[1] for name in shapes if (match := pattern.fullmatch(name))})
    blocks = []
    for i in range(count):
        names = [f"{stage}.{i}.conv{j}.weight" for j in (1, 2, 3)]
        convolutions = [shapes[name] for name in names if name in shapes]
        stride = 2 if stage != "layer1" and i == 0 else 1
        blocks.append(_Block(convolutions, stride, shapes.get(f"{stage}.{i}.downsample.0.weight")))
    return blocks


def load_resnet(weights: dict[str, Tensor]) -> ResNet:
    """The network of a state dict, ready to be asked.

    Raises:
        ValueError: the weights are not those of one.
    """
    network = ResNet({name: weight.shape for name, weight in weights.items()})
    try:
        network.load_state_dict({name: weight.float() for name, weight in weights.items()})
    except RuntimeError as error:
        raise ValueError(f"these are not the weights of a ResNet in torchvision's layout: {error}") from error
    return network.eval().requires_grad_(False)
