"""Trains the autoencoder: `python dev.py python -m guidekit.demo.training.autoencoder FOLDER`."""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from ..world.autoencoder import CHANNELS, DOWNSCALE, Autoencoder
from .draw import chunk_file
from .files import load_scenes
from .optimizer import Optimizer
from .state import Training

SEED = 21
BATCH = 24
ENDS = ("latent.weight", "encoder.0.weight", "encoder.4.weight", "decoder.0.weight", "decoder.10.weight")
NOISE = 0.10  # latents are spoiled by up to so much: neighbours must decode to neighbours


def images_of(folder: Path, split: str, chunks: range) -> Tensor:
    """All drawn images of some chunks, bytes [n, 3, H, W]."""
    return torch.cat([load_scenes(chunk_file(folder, split, chunk))[1]["images"] for chunk in chunks])


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, values in -1..1, in dB."""
    return 10 * torch.log10(4 / (a - b).square().flatten(1).mean(1))


def reconstruction_loss(decoded: Tensor, images: Tensor) -> Tensor:
    """Mean absolute error of the images, and of their differences between neighbours: edges stay sharp."""
    error = decoded.float() - images
    across = error[..., 1:] - error[..., :-1]
    down = error[..., 1:, :] - error[..., :-1, :]
    return error.abs().mean() + 0.5 * (across.abs().mean() + down.abs().mean()) + 2 * error.square().mean()


@torch.no_grad()
def start_linear(model: Autoencoder, images: Tensor) -> None:
    """Let the linear maps be the principal components of the patches of `images`, values in -1..1."""
    patches = nn.functional.pixel_unshuffle(images, DOWNSCALE).movedim(1, -1).flatten(0, 2)
    mean = patches.mean(0)
    variance, vectors = torch.linalg.eigh((patches - mean).T.cov())
    variance, vectors = variance.flip(0)[:CHANNELS], vectors.flip(1)[:, :CHANNELS]
    gain = variance**0.25  # half way between equal deviations and their own
    model.gain.copy_((gain / gain.square().mean().sqrt())[:, None, None])
    down = vectors / variance.sqrt()
    model.to_latent.weight.copy_(down.T[..., None, None])
    model.to_latent.bias.copy_(-mean @ down)
    model.from_latent.weight.copy_((vectors * variance.sqrt() / model.gain.flatten())[..., None, None])
    model.from_latent.bias.copy_(mean)


class Loss:
    def __init__(self, model: Autoencoder, images: Tensor):
        self.model, self.images = model, images
        self.encode, self.decode = torch.compile(model.encode), torch.compile(model.decode)

    def __call__(self, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(self.images), (BATCH,), generator=generator)
        images = self.images[rows].float() / 127.5 - 1
        with torch.autocast("cpu", torch.bfloat16):
            latents = self.encode(images).float()
            noise = torch.randn(latents.shape, generator=generator)
            latents = latents + NOISE * torch.rand((BATCH, 1, 1, 1), generator=generator) * noise
            decoded = self.decode(latents)
        return reconstruction_loss(decoded, images)


@torch.inference_mode()
def report(model: Autoencoder, images: Tensor) -> str:
    """How good it is on images it has not seen, and the mean and deviation of their latents."""
    latents = model.encode(images)
    found = psnr(model.decode(latents).clamp(-1, 1), images)
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    return (
        f"unseen: PSNR {found.mean():.2f} dB (least {found.min():.2f}), latents of {CHANNELS} channels, "
        f"mean up to {mean.abs().max():.3f}, deviations {' '.join(f'{s:.2f}' for s in std)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--chunks", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    model = Autoencoder()
    images = images_of(options.folder, "training", range(options.chunks))
    start_linear(model, images[:1000].float() / 127.5 - 1)
    optimizer = Optimizer(model, ENDS)
    training = Training("autoencoder", model, optimizer, options.folder, SEED)
    training.run(options.steps, Loss(model, images))
    model.load_state_dict(training.average.weights)
    unseen = images_of(options.folder, "judge", range(1)).float() / 127.5 - 1
    training.say(report(nn.Module.eval(model), unseen))


if __name__ == "__main__":
    main()
