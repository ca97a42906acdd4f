"""The demo models' autoencoder: 64 x 64 pixels to 16 x 16 latents of CHANNELS channels.

No norm looks across an image, so that a tile decodes as it does within the whole, a few latent pixels from its edges.
"""

from torch import Tensor, nn

CHANNELS = 12
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
    """Called by the host's VAE. Images are RGB in -1..1, [n, 3, H, W]; latents [n, CHANNELS, H / 4, W / 4] have zero
    mean and unit variance over drawn scenes, which the norm behind the encoder has learned."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(12, 48, 3, padding=1),
            Residual(48),
            nn.PixelUnshuffle(2),
            nn.Conv2d(192, 64, 1),
            Residual(64),
            Residual(64),
            nn.Conv2d(64, CHANNELS, 3, padding=1),
        )
        self.norm = nn.BatchNorm2d(CHANNELS, affine=False, momentum=0.01)
        self.decoder = nn.Sequential(
            nn.Conv2d(CHANNELS, 80, 3, padding=1),
            Residual(80),
            Residual(80),
            nn.Conv2d(80, 192, 1),
            nn.PixelShuffle(2),
            Residual(48),
            Residual(48),
            nn.Conv2d(48, 128, 3, padding=1),
            nn.PixelShuffle(2),
            Residual(32),
            nn.SiLU(),
            nn.Conv2d(32, 3, 3, padding=1),
        )

    def encode(self, pixels: Tensor) -> Tensor:
        return self.norm(self.encoder(pixels))

    def decode(self, latents: Tensor, **_options) -> Tensor:
        return self.decoder(latents)
