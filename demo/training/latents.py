"""Encodes drawn scenes once, with captions: `python dev.py python -m guidekit.demo.training.latents FOLDER`.

Writes FOLDER/latents/training-00000.pt and so on, from which diffusion models are trained without drawing.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from ..world.autoencoder import Autoencoder
from ..world.captions import random_captions, split_words
from ..world.scenes import Scenes, generator_of
from ..world.vocabulary import END, MAX_LENGTH, PAD, START, VOCABULARY
from .draw import chunk_file
from .files import load, load_scenes, save

WORDINGS = 8  # captions of each scene, and the empty one behind them
_NUMBERS = {word: i for i, word in enumerate(VOCABULARY)}


def tokens_of(captions: list[str]) -> Tensor:
    """Rows of MAX_LENGTH tokens, as the host's tokenizer makes them of captions that fit."""
    rows = torch.full((len(captions), MAX_LENGTH), PAD, dtype=torch.uint8)
    for row, caption in zip(rows, captions):
        numbers = [START, *(_NUMBERS[word] for word in split_words(caption)), END]
        row[: len(numbers)] = torch.tensor(numbers, dtype=torch.uint8)
    return rows


def say(scenes: Scenes, chunk: int) -> Tensor:
    """WORDINGS captions for each scene of a chunk and the empty caption, as tokens."""
    generator = generator_of("training", chunk + 2**28)  # far from the chunks that are drawn
    spoken = [tokens_of(random_captions(scenes, generator)) for _ in range(WORDINGS)]
    return torch.stack([*spoken, tokens_of([""] * len(scenes))], 1)


def load_autoencoder(folder: Path) -> Autoencoder:
    """The autoencoder in its current state of training."""
    model = Autoencoder()
    model.load_state_dict(load(folder / "autoencoder.pt")["average"])
    return model.eval().requires_grad_(False)


def latents_of(folder: Path, chunks: range) -> tuple[Tensor, Tensor]:
    """The latents of some chunks, float16 [n, channels, h, w], and captions as tokens [n, WORDINGS + 1, MAX_LENGTH]."""
    parts = [load(folder / "latents" / f"training-{chunk:05d}.pt") for chunk in chunks]
    return torch.cat([p["latents"] for p in parts]), torch.cat([p["tokens"] for p in parts])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--chunks", type=int, default=160)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = load_autoencoder(options.folder)
    for chunk in range(options.chunks):
        path = options.folder / "latents" / f"training-{chunk:05d}.pt"
        if not path.exists():
            scenes, more = load_scenes(chunk_file(options.folder, "training", chunk))
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                batches = [model.encode(batch.float() / 127.5 - 1).half() for batch in more["images"].split(50)]
            save({"latents": torch.cat(batches), "tokens": say(scenes, chunk)}, path)


if __name__ == "__main__":
    main()
