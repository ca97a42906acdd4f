"""The evaluation classifier: says what a 32x32 picture shows, and gives the features for the Fréchet distance.

It was trained on drawn pictures only (`train.py`), never on generated ones, and no technique may be guided by it.
"""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from .pictures import BACKGROUNDS, COLOURS, HUES, SHAPES

FEATURES = 64
WEIGHTS = Path(__file__).with_name("judge.safetensors")


class Judge(nn.Module):
    def __init__(self):
        super().__init__()

        def stage(i: int, o: int, stride: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(i, o, 3, stride, 1), nn.GroupNorm(8, o), nn.SiLU())

        self.body = nn.Sequential(
            stage(3, 32, 1), stage(32, 48, 2), stage(48, 64, 1), stage(64, 96, 2), stage(96, 96, 1)
        )
        self.features = nn.Linear(96 * 2, FEATURES)
        self.shape = nn.Linear(FEATURES, len(SHAPES))
        self.colour = nn.Linear(FEATURES, len(COLOURS))
        self.background = nn.Linear(FEATURES, len(BACKGROUNDS))

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Logits of shape, colour and background, and the features [n, FEATURES], of RGB in 0..1 [n, 3, H, W]."""
        x = self.body(pictures * 2 - 1)
        f = self.features(torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1))
        h = nn.functional.silu(f)
        return {"shape": self.shape(h), "colour": self.colour(h), "background": self.background(h), "features": f}


@cache
def load_judge() -> Judge:
    from safetensors.torch import load_file

    judge = Judge().eval().requires_grad_(False)
    judge.load_state_dict(load_file(WEIGHTS))
    return judge


def colour_by_rule(pictures: Tensor) -> Tensor:
    """Index into COLOURS of the nearest hue of the most colourful tenth of each picture; no learning involved."""
    flat = pictures.flatten(2)
    chroma = flat.amax(1) - flat.amin(1)
    top = chroma.topk(flat.shape[2] // 10, dim=1)
    weights = top.values / top.values.sum(1, keepdim=True)
    ink = (flat.gather(2, top.indices[:, None].expand(-1, 3, -1)) * weights[:, None]).sum(2)
    r, g, b = ink.unbind(1)
    hue = torch.atan2(3**0.5 * (g - b), 2 * r - g - b) / (2 * torch.pi)
    gap = (hue[:, None] - torch.tensor(HUES)) % 1.0
    return torch.minimum(gap, 1 - gap).argmin(1)
