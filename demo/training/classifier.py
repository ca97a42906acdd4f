"""Trains the classifier that guides (world/classifier.py), on drawn scenes spoiled as denoised estimates are."""

import torch
from torch import Tensor, nn

from ...samplers.classifiers.resnet import ResNet
from ..world.classifier import LABELS, shapes
from .diffusion import reset_parameters
from .judge import spoil

SEED = 23
ENDS = ("conv1.weight", "fc.weight")


def new_classifier() -> ResNet:
    network = ResNet(shapes())
    reset_parameters(network)
    return network


def half_done(images: Tensor) -> Tensor:
    """What denoised estimates of early steps look like: coarse, and grey where nothing is decided."""
    one = (len(images), 1, 1, 1)
    coarse = images
    for scale in (2, 4, 8):
        small = nn.functional.avg_pool2d(images, scale)
        small = nn.functional.interpolate(small, images.shape[-1], mode="bilinear")
        coarse = torch.where(torch.rand(one, device=images.device) < 0.25, small, coarse)
    mean = images.mean((2, 3), keepdim=True)
    return torch.lerp(coarse, mean, 0.5 * torch.rand(one, device=images.device))


class Loss:
    """The loss on a random batch of images (bytes); `labels` [n, labels] say which labels are in each image."""

    def __init__(self, network: nn.Module, labels: Tensor, images: Tensor, batch: int):
        self.network, self.labels, self.images, self.batch = network, labels, images, batch

    def __call__(self) -> Tensor:
        device = self.images.device
        rows = torch.randint(len(self.images), (self.batch,), device=device)
        images = spoil(half_done(self.images[rows].float() / 255), None)
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
            logits = self.network(images * 2 - 1)
        return nn.functional.binary_cross_entropy_with_logits(logits.float(), self.labels[rows].float())


@torch.inference_mode()
def report(network: nn.Module, images: Tensor, labels: Tensor) -> str:
    """On unseen images, as they are: of each kind of label, how often a label that is there is above all that are
    not."""
    logits = torch.cat([network(part * 2 - 1) for part in images.split(500)]).cpu()
    highest = logits.masked_fill(labels, -torch.inf)
    kinds = {"shape": slice(0, 5), "colour": slice(5, 13), "material": slice(13, 16), "floor": slice(16, 20)}
    kinds |= {"time": slice(20, 23), "solid": slice(23, len(LABELS))}
    shares = []
    for name, part in kinds.items():
        above = (logits[:, part] > highest[:, part].amax(1, keepdim=True))[labels[:, part]]
        shares.append(f"{name} {100 * above.float().mean():.1f} %")
    return "unseen: " + ", ".join(shares)
