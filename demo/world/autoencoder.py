"""The demo models' autoencoder: 64 x 64 pixels to 16 x 16 latents of CHANNELS channels.

No norm spans the image, so that a tile decodes as it does within the whole image, except for a few latent pixels at its
edges.
"""

import torch
from torch import Tensor, nn

CHANNELS = 8
DOWNSCALE = 4


class Residual(nn.Module):
    """x + f(x), f two convolutions; the second starts at zero."""

    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.SiLU(), nn.Conv2d(width, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1)
        )
        nn.init.zeros_(self.body[-1].weight)
        nn.init.zeros_(self.body[-1].bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Autoencoder(nn.Module):
    """Called by the host's VAE. Images are RGB in -1..1, [n, 3, H, W], latents [n, CHANNELS, H / 4, W / 4].

    Encoder and decoder are a linear map of each 4 x 4 patch, plus the output of a network. Over drawn scenes each
    channel of the latents has zero mean and the deviation `gain`, which is larger where more is to be seen: what is
    coarse is decided first when noise is taken away.
    """

    def __init__(self):
        super().__init__()
        patch = 3 * DOWNSCALE**2
        self.to_latent = nn.Conv2d(patch, CHANNELS, 1)
        self.from_latent = nn.Conv2d(CHANNELS, patch, 1)
        self.encoder = nn.Sequential(
            nn.Conv2d(patch, 64, 3, padding=1),
            Residual(64),
            Residual(64),
            nn.SiLU(),
            nn.Conv2d(64, CHANNELS, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(CHANNELS, 96, 3, padding=1),
            Residual(96),
            nn.Conv2d(96, 192, 1),
            nn.PixelShuffle(2),
            Residual(48),
            Residual(48),
            nn.Conv2d(48, 96, 3, padding=1),
            nn.PixelShuffle(2),
            Residual(24),
            nn.SiLU(),
            nn.Conv2d(24, 3, 3, padding=1),
        )
        for last in (self.encoder[-1], self.decoder[-1]):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        self.norm = nn.BatchNorm2d(CHANNELS, affine=False, momentum=0.01)
        self.register_buffer("gain", torch.ones(CHANNELS, 1, 1))

    def encode(self, pixels: Tensor) -> Tensor:
        patches = nn.functional.pixel_unshuffle(pixels, DOWNSCALE)
        return self.norm(self.to_latent(patches) + self.encoder(patches)) * self.gain

    def decode(self, latents: Tensor, **_options) -> Tensor:
        return nn.functional.pixel_shuffle(self.from_latent(latents), DOWNSCALE) + self.decoder(latents)
