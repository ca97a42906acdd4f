"""Draws, captions and encodes scenes in one go, without intermediate files, for trainings on one machine.

Processes place scenes and make captions; the images are drawn and encoded on the device. If the device fails, or draws
differently from the CPU, the processes draw as well.
"""

import dataclasses
import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..world.autoencoder import Autoencoder
from ..world.render import draw
from ..world.scenes import Scenes, generator_of, random_scenes
from .draw import CHUNK
from .files import load, save
from .latents import say

TOGETHER = 4  # chunks that the device draws at once
SAME = 0.01  # of the pixels may differ: a ray that just touches a solid may miss it


@dataclass(frozen=True)
class Part:
    """Some scenes with captions; NumPy arrays, which other processes get as they are."""

    scenes: tuple[np.ndarray, ...]
    tokens: np.ndarray
    images: np.ndarray | None  # bytes


def place(chunk: int, size: int = CHUNK) -> Part:
    """A chunk of the training's scenes (draw.py has the same) with captions."""
    torch.set_num_threads(1)
    scenes = random_scenes(size, generator_of("training", chunk), "known")
    fields = tuple(getattr(scenes, f.name).numpy() for f in dataclasses.fields(scenes))
    return Part(fields, say(scenes, chunk).numpy(), None)


def place_and_draw(chunk: int, size: int = CHUNK) -> Part:
    part = place(chunk, size)
    with torch.inference_mode():
        images = as_bytes(draw(scenes_of([part]))[0])
    return dataclasses.replace(part, images=images.numpy())


def scenes_of(parts: list[Part]) -> Scenes:
    return Scenes(*(torch.from_numpy(np.concatenate(column)) for column in zip(*(p.scenes for p in parts))))


def as_bytes(images: Tensor) -> Tensor:
    return (images * 255).round().to(torch.uint8)


@torch.inference_mode()
def draw_on(device: torch.device, scenes: Scenes) -> Tensor:
    """The images, bytes, on the device."""
    with device:  # where the renderer makes its constants
        return as_bytes(draw(scenes.to(device), TOGETHER * CHUNK)[0])


def draws_alike(device: torch.device) -> bool:
    """Whether a device draws what the CPU does."""
    scenes = random_scenes(16, generator_of("tests", 0))
    there, here = draw_on(device, scenes).cpu().int(), as_bytes(draw(scenes)[0]).int()
    return ((there - here).abs() > 3).float().mean().item() < SAME


@torch.inference_mode()
def encode(model: Autoencoder, images: Tensor) -> Tensor:
    """Latents, float16, of images in bytes."""
    return torch.cat([model.encode(batch.float() / 127.5 - 1).half() for batch in images.split(1000)])


@dataclass(frozen=True)
class Gathered:
    """The scenes whose images are kept come first."""

    scenes: Scenes
    tokens: Tensor  # [n, WORDINGS + 1, MAX_LENGTH], bytes
    latents: Tensor  # [n, channels, h, w], float16
    images: Tensor  # bytes, [at most n, 3, H, W]


def gather(
    model: Autoencoder,
    device: torch.device,
    say: Callable[[str], None],
    workers: int,
    until: float,
    most: int,
    images: int,
    size: int = CHUNK,
    on_device: bool = True,
    first: int = 0,
) -> Gathered:
    """The chunks from `first` on that are drawn before the time `until`, at most so many. `images` of their images are
    kept. `on_device`: the device draws if it can, else the processes."""
    chunks = range(first, first + most)
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload([__name__])
    with context.Pool(workers) as pool:
        # The processes start while the device is tested.
        placed = pool.imap(_Job(False, size), chunks) if on_device else None
        if placed is not None and not _can_draw(device, say):
            pool.terminate()
            placed = None
        if placed is not None:
            return _collect(placed, model, device, say, until, images)
    with context.Pool(workers) as pool:
        return _collect(pool.imap(_Job(True, size), chunks), model, device, say, until, images)


@dataclass(frozen=True)
class _Job:
    drawn: bool
    size: int

    def __call__(self, chunk: int) -> Part:
        return (place_and_draw if self.drawn else place)(chunk, self.size)


def _can_draw(device: torch.device, say: Callable[[str], None]) -> bool:
    try:
        alike = draws_alike(device)
    except RuntimeError as error:
        say(f"{device} cannot draw ({str(error)[:300]}); the processes draw")
        return False
    if not alike:
        say(f"{device} draws other images than the CPU; the processes draw")
    return alike


def _collect(
    parts: Iterator[Part], model: Autoencoder, device: torch.device, say: Callable[[str], None], until: float, keep: int
) -> Gathered:
    scenes, tokens, latents, images, begun, kept = [], [], [], [], time.time(), 0
    model = model.to(device)
    for some in _batches(parts, until):
        there = scenes_of(some)
        if some[0].images is None:
            drawn = draw_on(device, there)
        else:
            drawn = torch.from_numpy(np.concatenate([p.images for p in some])).to(device)
        latents.append(encode(model, drawn).cpu())
        if kept < keep:
            images.append(drawn.cpu())
            kept += len(drawn)
        scenes.append(there)
        tokens.append(torch.from_numpy(np.concatenate([p.tokens for p in some])))
    count = sum(map(len, scenes))
    say(f"{count} scenes in {len(tokens)} batches, drawn and encoded in {time.time() - begun:.1f} s")
    return Gathered(Scenes.join(scenes), torch.cat(tokens), torch.cat(latents), torch.cat(images)[:keep])


def _batches(parts: Iterator[Part], until: float) -> Iterator[list[Part]]:
    """Yields TOGETHER parts at a time, the first ones whatever the time."""
    some: list[Part] = []
    for part in parts:
        some.append(part)
        if len(some) == TOGETHER:
            yield some
            some = []
            if time.time() > until:
                return
    if some:
        yield some


def save_gathered(gathered: Gathered, folder: Path) -> None:
    """Saves two files: one for diffusion models and one for judges."""
    labelled = gathered.scenes.take(slice(len(gathered.images)))
    fields = [getattr(labelled, f.name).clone() for f in dataclasses.fields(labelled)]
    save({"latents": gathered.latents, "tokens": gathered.tokens}, folder / "latents.pt")
    save({"scenes": fields, "images": gathered.images}, folder / "images.pt")


def load_labelled(folder: Path) -> tuple[Scenes, Tensor]:
    content = load(folder / "images.pt")
    return Scenes(*content["scenes"]), content["images"]
