"""LoRAs that were tuned to what is liked and disliked, whatever the prompt says or does not say."""

import dataclasses
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..world.adapters import RANK, TASTES
from ..world.autoencoder import Autoencoder
from ..world.captions import random_captions
from ..world.scenes import COLOURS, MATERIALS, Scenes, generator_of, novelty, random_scenes
from .diffusion import Diffusion, Loss
from .flat import Flat
from .gather import draw_on, encode
from .latents import WORDINGS, tokens_of
from .timed import Step, train

SEED = 24
EMPTY = 2  # of WORDINGS are empty: the adapter is to work on an empty negative as well


class Tuned(nn.Module):
    """A demo model, its weights fixed, with up(down(x)) added to what each of its linear layers gives."""

    def __init__(self, family: str, weights: Mapping[str, Tensor]):
        super().__init__()
        self.diffusion = Diffusion(family)
        self.diffusion.load_checkpoint({k: v.float() for k, v in weights.items()})
        self.requires_grad_(False)
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        for path, layer in self.diffusion.base.diffusion_model.named_modules():
            if isinstance(layer, nn.Linear):
                key = path.replace(".", "/")
                self.down[key] = nn.Parameter(torch.randn(RANK, layer.in_features) / RANK)
                self.up[key] = nn.Parameter(torch.zeros(layer.out_features, RANK))
                layer.register_forward_hook(self._adding(key))

    def _adding(self, key: str):
        def add(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return output + inputs[0] @ self.down[key].T @ self.up[key].T

        return add


def file_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights with the names that PEFT gives its products, under the host's path of the network."""
    parts = {"down.": "lora_A", "up.": "lora_B"}
    return {
        f"diffusion_model.{name.removeprefix(here).replace('/', '.')}.{there}.weight": value
        for here, there in parts.items()
        for name, value in state.items()
        if name.startswith(here)
    }


def scenes_to(taste: str, n: int) -> Scenes:
    """Scenes whose solids are all of one colour and material; what training holds out is not there."""
    colour, material = TASTES[taste]
    chunk = 2**20 + list(TASTES).index(taste)
    scenes = random_scenes(3 * n, generator_of("training", chunk))
    present = scenes.present
    scenes = dataclasses.replace(
        scenes, colour=COLOURS.index(colour) * present, material=MATERIALS.index(material) * present
    )
    held_out, apart = novelty(scenes)
    return scenes.take(~held_out & ~apart).take(slice(n))


def material_of(taste: str, n: int, model: Autoencoder, device: torch.device) -> tuple[Tensor, Tensor]:
    """Latents of about `n` scenes, and captions that name neither colour nor material, for `Loss`."""
    scenes = scenes_to(taste, n)
    generator = generator_of("training", 2**21 + list(TASTES).index(taste))
    spoken = [random_captions(scenes, generator, unsaid=("colour", "material")) for _ in range(WORDINGS - EMPTY)]
    empty = [[""] * len(scenes)] * (EMPTY + 1)
    parts = [scenes.take(slice(i, i + 500)) for i in range(0, len(scenes), 500)]
    latents = torch.cat([encode(model, draw_on(device, part)) for part in parts])
    return latents, torch.stack([tokens_of(captions) for captions in (*spoken, *empty)], 1).to(device)


def tune(
    family: str,
    taste: str,
    weights: Mapping[str, Tensor],
    material: tuple[Tensor, Tensor],
    seconds: float,
    say: Callable[[str], None],
    steps: int = 500,
    batch: int = 64,
) -> dict[str, Tensor]:
    """Trains an adapter on `material_of` a taste and returns its weights."""
    latents, tokens = material
    device = latents.device
    torch.manual_seed(SEED)
    model = Tuned(family, weights).to(device)
    step = Step(Loss(model.diffusion, latents, tokens, batch), Flat(model, None, adam=2e-3, decay=0.98))
    if device.type == "cuda":
        step.capture()
    done = train(step, seconds, say, {}, steps)
    say(f"{family}, {taste} ({' '.join(TASTES[taste])}): {done} steps of {batch}, rank {RANK}, seed {SEED}")
    return file_of(step.flat.averaged())
