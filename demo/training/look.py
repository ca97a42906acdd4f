"""Shows the progress of a training: `python dev.py python -m guidekit.demo.training.look FOLDER unet [--count 32]`.

Samples the moving average of the last checkpoint at some guidance scales, for captions of two solids that were never
together in training; has them judged; writes FOLDER/looks/unet-<step>.png and a table below FOLDER/looks/unet.log.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..measures import clipped, saturation
from ..world.autoencoder import Autoencoder
from ..world.captions import plain_caption
from ..world.judge import Judge, find
from ..world.scenes import Scenes, generator_of, random_scenes
from .files import load
from .latents import load_autoencoder
from .state import Log

SCALES = (1.0, 3.0, 6.0, 12.0)
STEPS = 25
COLUMNS = 12


def captioned(count: int) -> tuple[Scenes, list[str]]:
    """The first `count` of the scenes that progress is measured on, and their captions."""
    scenes = random_scenes(500, generator_of("evaluation", 0), "new pairs", 2).take(slice(count))
    return scenes, [plain_caption(scenes, i) for i in range(count)]


class Sampler:
    """A model with the weights of a checkpoint, sampled through the host as a workflow does."""

    def __init__(self, family: str, weights: Mapping[str, Tensor], autoencoder: Autoencoder):
        from ..world import models

        weights = {k: v.detach().float().clone() for k, v in weights.items()}
        self.model, self.clip = models.load_model(family, weights), models.load_clip(weights)
        self.vae = models.load_vae(autoencoder.state_dict())

    def encode(self, captions: Sequence[str]) -> list:
        encoded = [self.clip.encode_from_tokens(self.clip.tokenize(c), return_pooled=True) for c in captions]
        context, pooled = (torch.cat(part) for part in zip(*encoded))
        return [[context, {"pooled_output": pooled}]]

    @torch.inference_mode()
    def sample(self, captions: Sequence[str], scale: float, steps: int = STEPS, seed: int = 0) -> Tensor:
        """Images [n, 3, H, W] in 0..1."""
        import comfy.samplers

        guider = comfy.samplers.CFGGuider(self.model)
        guider.set_conds(self.encode(captions), self.encode([""] * len(captions)))
        guider.set_cfg(scale)
        sampling = self.model.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", steps)
        noise = torch.randn((len(captions), self.vae.latent_channels, 16, 16), generator=generator_of("tests", seed))
        euler = comfy.samplers.sampler_object("euler")
        latent = guider.sample(noise, torch.zeros_like(noise), euler, sigmas, disable_pbar=True, seed=seed)
        return self.vae.decode(latent).movedim(-1, 1).cpu()


def row(name: str, images: Tensor, scenes: Scenes, judge: Judge) -> str:
    """A line of the table: in how many images each property is right."""
    found = find(judge, images)
    shares = [found.right(scenes), *(found.right(scenes, n) for n in ("shape", "colour", "material", "extent"))]
    shares += [found.right(scenes, "shape", "colour"), found.floor == scenes.floor, found.time == scenes.time]
    share = " | ".join(f"{100 * s.float().mean():5.1f} %" for s in shares)
    return f"| {name} | {share} | {saturation(images).mean():.3f} | {100 * clipped(images).mean():.1f} % |"


HEADER = "| images | count | shapes | colours | materials | sizes | both right | floor | time | saturation | clipped |"


def save_sheet(rows: Sequence[Tensor], path: Path, zoom: int = 2) -> None:
    """Rows of images, one below the other."""
    from PIL import Image

    sheet = torch.cat([torch.cat(list(images), 2) for images in rows], 1).movedim(0, -1)
    image = Image.fromarray((sheet * 255).round().byte().numpy())
    path.parent.mkdir(parents=True, exist_ok=True)
    image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("family", choices=("unet", "dit"))
    parser.add_argument("--name", help="of the training's files, if it is not the family's")
    parser.add_argument("--file", type=Path, help="kept weights instead of the last checkpoint")
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--scales", type=float, nargs="*", default=SCALES)
    options = parser.parse_args()
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    torch.set_num_threads(1)
    name = options.name or options.family
    from .diffusion import Diffusion

    state = load(options.file or options.folder / f"{name}.pt")
    weights = Diffusion(options.family).checkpoint(state.get("average", state))
    sampler, step = Sampler(options.family, weights, load_autoencoder(options.folder)), state.get("step", 0)
    judge = Judge().eval()
    judge.load_state_dict(load(options.folder / "judge.pt")["average"])
    scenes, captions = captioned(options.count)
    looks = options.folder / "looks"
    looks.mkdir(parents=True, exist_ok=True)
    log, sheet = Log(looks / f"{name}.log"), []

    def say(line: str) -> None:
        log(line)
        sys.stdout.write(line + "\n")

    say(f"\n{name}, step {step}, {options.count} captions such as {captions[0]!r}\n\n{HEADER}")
    for scale in options.scales:
        images = torch.cat([sampler.sample(captions[i : i + 24], scale, seed=i) for i in range(0, len(captions), 24)])
        say(row(f"cfg {scale:g}", images, scenes, judge))
        sheet.append(images[:COLUMNS])
    save_sheet(sheet, looks / f"{name}-{step:06d}.png")


if __name__ == "__main__":
    main()
