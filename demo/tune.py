"""Tunes an adapter of a demo model to a colour: `python dev.py python -m guidekit.demo.tune FAMILY liked [--steps N]`.

Plain fine-tuning of a LoRA on drawn pictures of one colour, with captions that do not name it. Fixed seed. Writes
`liked_<family>.safetensors` (fp16) and its log beside this file.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from . import pictures
from .adapters import COLOURS, FAMILIES, RANK, adapter_file
from .train import BATCH, SEED, Diffusion, learning_rate, save_weights

EMPTY = 0.3  # share of captions that are empty: the adapter is to work on an empty negative as well


class Tuned(nn.Module):
    """A demo model, its weights fixed, with up(down(x)) added to what each of its linear layers gives."""

    def __init__(self, family: str):
        super().__init__()
        from . import models

        self.diffusion = Diffusion(family)
        weights = models.read_checkpoint(models.checkpoint_file(family))
        for prefix, part in (
            ("model.diffusion_model.", self.diffusion.base.diffusion_model),
            ("cond_stage_model.", self.diffusion.text),
        ):
            part.load_state_dict(
                {k.removeprefix(prefix): v.float() for k, v in weights.items() if k.startswith(prefix)}
            )
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

    def weights(self) -> dict[str, Tensor]:
        """With the names that PEFT gives its products, under the host's path of the network."""
        parts = {"lora_A": self.down, "lora_B": self.up}
        return {
            f"diffusion_model.{key.replace('/', '.')}.{part}.weight": tensor.detach()
            for part, tensors in parts.items()
            for key, tensor in tensors.items()
        }


def loss_of(model: Tuned, colour: int, generator: torch.Generator) -> Tensor:
    scenes = pictures.random_scenes(BATCH, generator)._replace(colour=torch.full((BATCH,), colour))
    word = pictures.COLOURS[colour]
    captions = [c.replace(f" {word}", "") for c in pictures.random_captions(scenes, generator, dropout=EMPTY)]
    return model.diffusion(pictures.draw(scenes), captions)


def tune(family: str, say: str, steps: int) -> None:
    colour = pictures.COLOURS.index(COLOURS[say])
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    model = Tuned(family)
    parameters = [*model.down.parameters(), *model.up.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, betas=(0.9, 0.99), weight_decay=0.0)
    path, start, running = adapter_file(family, say), time.perf_counter(), 0.0
    with Path(path.with_suffix(".log")).open("w") as log:

        def tell(line: str) -> None:
            for out in (log, sys.stdout):
                out.write(line + "\n")
                out.flush()

        tell(
            f"{family}, {say} ({COLOURS[say]}): {steps} steps of {BATCH}, rank {RANK}, seed {SEED}, "
            f"torch {torch.__version__}"
        )
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = 2e-3 * learning_rate(step, steps)
            optimizer.zero_grad(set_to_none=True)
            with torch.autograd.graph.allow_mutation_on_saved_tensors():
                loss = loss_of(model, colour, generator)
                loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            running = 0.98 * (running or loss.item()) + 0.02 * loss.item()
            if (step + 1) % 50 == 0 or step + 1 == steps:
                tell(f"step {step + 1:5d}  loss {running:.4f}  {time.perf_counter() - start:6.0f} s")
    metadata = {
        "modelspec.title": f"Guidekit demo, {say}: {COLOURS[say]}",
        "modelspec.architecture": f"guidekit-demo-{family}/lora",
        "modelspec.license": "MIT",
    }
    save_weights(model.weights(), path, metadata)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("say", choices=[*COLOURS])
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    comfy.cli_args.args.use_pytorch_cross_attention = True
    import comfy.model_management

    comfy.model_management.in_training = True  # the host's fused kernels have no gradient
    tune(options.family, options.say, options.steps)


if __name__ == "__main__":
    main()
