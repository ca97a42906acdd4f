"""Trains the autoencoder: `python dev.py python -m guidekit.demo.training.autoencoder FOLDER`."""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from ..world.autoencoder import CHANNELS, Autoencoder
from .draw import chunk_file
from .files import load_scenes
from .optimizer import Optimizer
from .state import Training

SEED = 21
BATCH = 24
NOISE = 0.12  # latents are spoiled by up to so much: neighbours must decode to neighbours


def images_of(folder: Path, split: str, chunks: range) -> Tensor:
    """All drawn images of some chunks, bytes [n, 3, H, W]."""
    return torch.cat([load_scenes(chunk_file(folder, split, chunk))[1]["images"] for chunk in chunks])


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Of each image, values in -1..1, in dB."""
    return 10 * torch.log10(4 / (a - b).square().flatten(1).mean(1))


def reconstruction_loss(decoded: Tensor, images: Tensor) -> Tensor:
    """Mean absolute error of the images, and of their differences between neighbours: edges stay sharp."""
    error = decoded.float() - images
    across = error[..., 1:] - error[..., :-1]
    down = error[..., 1:, :] - error[..., :-1, :]
    return error.abs().mean() + 0.5 * (across.abs().mean() + down.abs().mean()) + 2 * error.square().mean()


class Loss:
    def __init__(self, model: Autoencoder, images: Tensor):
        self.model, self.images = model.to(memory_format=torch.channels_last), images

    def __call__(self, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(self.images), (BATCH,), generator=generator)
        images = self.images[rows].float() / 127.5 - 1
        with torch.autocast("cpu", torch.bfloat16):
            latents = self.model.encode(images.to(memory_format=torch.channels_last)).float()
            noise = torch.randn(latents.shape, generator=generator)
            latents = latents + NOISE * torch.rand((BATCH, 1, 1, 1), generator=generator) * noise
            decoded = self.model.decode(latents)
        return reconstruction_loss(decoded, images)


@torch.inference_mode()
def report(model: Autoencoder, images: Tensor) -> str:
    """How good it is on images it has not seen, and the mean and deviation of their latents."""
    latents = model.encode(images)
    found = psnr(model.decode(latents).clamp(-1, 1), images)
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    return (
        f"unseen: PSNR {found.mean():.2f} dB (least {found.min():.2f}), latents of {CHANNELS} channels, "
        f"mean up to {mean.abs().max():.3f}, deviation {std.min():.3f} to {std.max():.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--chunks", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    model = Autoencoder()
    optimizer = Optimizer(model, ("encoder.1.weight", "decoder.0.weight", "decoder.11.weight"))
    training = Training("autoencoder", model, optimizer, options.folder, SEED)
    training.run(options.steps, Loss(model, images_of(options.folder, "training", range(options.chunks))))
    model.load_state_dict(training.average.weights)
    unseen = images_of(options.folder, "judge", range(1)).float() / 127.5 - 1
    training.say(report(nn.Module.eval(model), unseen))


if __name__ == "__main__":
    main()
