"""ResNets (He, Zhang, Ren, Sun: "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv 1512.03385) in
torchvision's layout of names, of any depth, width and number of classes, built from the shapes in a state dict.

The names are those of torchvision's resnet18 to resnet152 and wide_resnet: conv1, bn1, layerN.M.convK, layerN.M.bnK,
layerN.M.downsample, fc. As there, the 3x3 convolution of a bottleneck has the stride.
"""

import math
import re
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

MOST_BLOCKS = 1000  # the paper's deepest network has 600
MOST_WEIGHTS = 2**30  # a wide ResNet-101 has 2**27
_NOT_ONE = "these are not the weights of a ResNet in torchvision's layout"


def activation(x: Tensor, beta: float | None) -> Tensor:
    """ReLU, or log(1 + exp(beta x)) / beta, which has gradients where ReLU has none (EluCD, arXiv 2310.11311)."""
    return F.relu(x) if beta is None else F.softplus(x, beta)


class _Block(nn.Module):
    """A residual block: two 3x3 convolutions, or 1x1, 3x3, 1x1. `convolutions`: their shapes [out, in, k, k], in order;
    `shortcut`: that of the convolution beside them, None for none."""

    def __init__(self, convolutions: Sequence[Sequence[int]], stride: int, shortcut: Sequence[int] | None):
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
    """A ResNet. `shapes`: those of the convolutions and of `fc`, by their names in a state dict."""

    def __init__(self, shapes: Mapping[str, Sequence[int]]):
        super().__init__()
        o, n, k, _ = shapes["conv1.weight"]
        self.conv1 = nn.Conv2d(n, o, k, 2, k // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(o)
        self.stages = [name for name in ("layer1", "layer2", "layer3", "layer4") if f"{name}.0.conv1.weight" in shapes]
        for name in self.stages:
            self.add_module(name, nn.ModuleList(_blocks(name, shapes)))
        classes, features = shapes["fc.weight"]
        self.fc = nn.Linear(features, classes)

    @property
    def classes(self) -> int:
        return self.fc.out_features

    def forward(self, x: Tensor, beta: float | None = None) -> Tensor:
        """Logits [B, classes] of normalised images [B, 3, H, W]; `beta`: that of `activation`."""
        x = F.max_pool2d(activation(self.bn1(self.conv1(x)), beta), 3, 2, 1)
        for name in self.stages:
            for block in getattr(self, name):
                x = block(x, beta)
        return self.fc(x.mean((2, 3)))


def _blocks(stage: str, shapes: Mapping[str, Sequence[int]]) -> list[_Block]:
    pattern = re.compile(rf"{stage}\.(\d+)\.conv\d+\.weight")
    count = len({match[1] for name in shapes if (match := pattern.fullmatch(name))})
    blocks = []
    for i in range(count):
        names = [f"{stage}.{i}.conv{j}.weight" for j in (1, 2, 3)]
        convolutions = [shapes[name] for name in names if name in shapes]
        stride = 2 if stage != "layer1" and i == 0 else 1
        blocks.append(_Block(convolutions, stride, shapes.get(f"{stage}.{i}.downsample.0.weight")))
    return blocks


def plan_resnet(shapes: Mapping[str, Sequence[int]], side: int = 224) -> ResNet:
    """The network for a state dict of these shapes, on the meta device, so that it uses no memory.

    `side`: of square images that it has to accept, in pixels.

    Raises:
        ValueError: they are not exactly the shapes of a ResNet, or the network is too large.
    """
    try:
        if empty := [name for name, shape in shapes.items() if 0 in shape]:
            raise ValueError(f"{empty[0][:200]} is {tuple(shapes[empty[0]])}")
        if (count := sum(map(math.prod, shapes.values()))) > MOST_WEIGHTS:
            raise ValueError(f"it has {count} weights, and up to {MOST_WEIGHTS} are read")
        blocks = {match[0] for name in shapes if (match := re.match(r"layer\d\.\d+\.", name))}
        if len(blocks) > MOST_BLOCKS:
            raise ValueError(f"it has {len(blocks)} blocks, and up to {MOST_BLOCKS} are read")
        with torch.device("meta"):
            network = ResNet(shapes)
            wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
            given = {name: tuple(shape) for name, shape in shapes.items()}
            odd = [name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name)]
            # Files without the counters of training steps are accepted.
            if odd := sorted(name for name in odd if name in given or not name.endswith("num_batches_tracked")):
                raise ValueError(
                    f"{odd[0][:200]} is {given.get(odd[0], 'missing')} and should be {wanted.get(odd[0], 'missing')}, "
                    f"with {len(odd) - 1} like it"
                )
            network.eval()(torch.empty(1, 3, side, side))
    except KeyError as error:
        raise ValueError(f"{_NOT_ONE}: {error.args[0][:200]} is missing") from error
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{_NOT_ONE}: {str(error)[:300]}") from error
    return network


def load_resnet(weights: Mapping[str, Tensor]) -> ResNet:
    """The network with the weights of a state dict, in float32 on the CPU, in evaluation mode.

    Raises:
        ValueError: the weights are not those of a ResNet.
    """
    network = plan_resnet({name: weight.shape for name, weight in weights.items()}).to_empty(device="cpu")
    network.load_state_dict({name: weight.float() for name, weight in weights.items()})
    return network.requires_grad_(False)
