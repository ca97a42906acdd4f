"""Draws the scenes that models are trained on: `python dev.py python -m guidekit.demo.training.draw FOLDER`.

Writes FOLDER/scenes/training-00000.pt and so on: CHUNK scenes each with their images as bytes. Existing files are not
drawn again, so it can be stopped at any time; several processes share the work with --first and --every.
"""

import argparse
from pathlib import Path

import torch

from ..world.render import draw
from ..world.scenes import SPLITS, generator_of, random_scenes
from .files import save_scenes

CHUNK = 500


def chunk_file(folder: Path, split: str, chunk: int) -> Path:
    return folder / "scenes" / f"{split}-{chunk:05d}.pt"


def draw_chunk(folder: Path, split: str, chunk: int) -> None:
    path = chunk_file(folder, split, chunk)
    if not path.exists():
        scenes = random_scenes(CHUNK, generator_of(split, chunk), "known" if split == "training" else "any")
        images, _ = draw(scenes)
        save_scenes(scenes, path, images=(images * 255).round().to(torch.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", choices=SPLITS, default="training")
    parser.add_argument("--chunks", type=int, default=160)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--every", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with torch.inference_mode():
        for chunk in range(options.first, options.chunks, options.every):
            draw_chunk(options.folder, options.split, chunk)


if __name__ == "__main__":
    main()
