"""Trains a diffusion model on latents: `python dev.py python -m guidekit.demo.training.diffusion FOLDER unet`.

Fixed seed; after a stop it goes on exactly from the last checkpoint, which is at most a few minutes old.
"""

import argparse
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..world.vocabulary import END
from .latents import latents_of
from .optimizer import Optimizer
from .state import Training

SEED = 20
BATCH = 32
DROPOUT = 0.12  # share of captions that are empty
ENDS = {
    "unet": ("embedding.weight", "input_blocks.0.0.weight", "out.2.weight"),
    "dit": ("embedding.weight", "img_in.weight", "final_layer.linear.weight"),
}
# Names here, and in a checkpoint of the host.
_PREFIXES = {"base.diffusion_model.": "model.diffusion_model.", "text.": "cond_stage_model."}
# Residual branches and the output start at zero, as their papers have it.
_ZERO = {
    "unet": ("out_layers.3", "proj_out", "out.2"),
    "dit": ("modulation.lin", "img_mod.lin", "txt_mod.lin", "adaLN_modulation.1", "final_layer.linear"),
}


def reset_parameters(module: nn.Module) -> None:
    """Ordinary initialisation: the host's layers leave their weights as found in memory."""
    for child in module.modules():
        for base in type(child).__mro__:
            if base in (nn.Linear, nn.Conv2d, nn.Embedding, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm):
                base.reset_parameters(child)
                break


def keep_inputs(module: nn.Module) -> None:
    """Let norms keep copies of their inputs, to which the host's blocks add in place before the backward pass."""

    def copy(_norm: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0].clone(), *inputs[1:])

    for child in module.modules():
        if isinstance(child, (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)):
            child.register_forward_pre_hook(copy)


def plain_attention(_attention: Callable, *args, **kwargs) -> Tensor:
    """Attention without the fused kernel, whose backward pass takes longer on CPUs than everything else."""
    from comfy.ldm.modules.attention import attention_basic

    return attention_basic(*args, **kwargs)


class Diffusion(nn.Module):
    """A demo model with its text encoder."""

    def __init__(self, family: str, dtype: torch.dtype = torch.float32):
        super().__init__()
        from ..world import models

        self.family, self.dtype = family, dtype
        self.base = models.diffusion_model(family, dtype=dtype)
        self.text = models.DemoTextEncoder(dtype=dtype)
        for part in (self.base.diffusion_model, self.text):
            reset_parameters(part)
            part.requires_grad_(True)
            keep_inputs(part)
        self.text.clip_demo.logit_scale.requires_grad_(False)  # which nothing uses
        words = self.text.clip_demo.transformer
        nn.init.normal_(words.token_embedding.weight, std=0.3)
        nn.init.normal_(words.position_embedding.weight, std=0.1)
        for name, child in self.base.diffusion_model.named_modules():
            if name.endswith(_ZERO[family]):
                nn.init.zeros_(child.weight)
                nn.init.zeros_(child.bias)

    def encode(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Context and pooled text of token rows [n, MAX_LENGTH], as the host's CLIP gives them."""
        words = self.text.clip_demo.transformer
        length = (tokens == END).int().argmax(1) + 1
        # A product instead of a look-up: its gradient is then a product too, which a CUDA graph can hold.
        weight = words.token_embedding.weight
        chosen = tokens[..., None] == torch.arange(len(weight), device=tokens.device)
        context, _, pooled = words(None, embeds=chosen.to(weight) @ weight, num_tokens=length, dtype=self.dtype)
        return context, pooled

    def draw_sigma(self, n: int, generator: torch.Generator | None) -> Tensor:
        sigmas = self.base.model_sampling.sigmas
        if self.family == "unet":
            return sigmas[torch.randint(len(sigmas), (n,), generator=generator, device=sigmas.device)]
        return torch.randn(n, generator=generator, device=sigmas.device).sigmoid()  # logit-normal (Esser et al. 2024)

    def forward(self, latents: Tensor, tokens: Tensor, sigma: Tensor, noise: Tensor, network: Callable) -> Tensor:
        """Error of the prediction in each of the n latents."""
        sampling, s = self.base.model_sampling, sigma[:, None, None, None]
        x0 = self.base.latent_format.process_in(latents)
        if self.family == "unet":
            x, target = x0 + s * noise, (noise - s * x0) / (1 + s**2).sqrt()
        else:
            x, target = (1 - s) * x0 + s * noise, noise - x0
        context, pooled = self.encode(tokens)
        output = network(
            sampling.calculate_input(sigma, x).to(self.dtype),
            sampling.timestep(sigma).float(),
            context=context,
            y=pooled,
            transformer_options={"optimized_attention_override": plain_attention} if x.device.type == "cpu" else {},
        )
        return (output.float() - target).square().mean((1, 2, 3))

    def checkpoint(self, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """`weights`, by default the model's own, under the names of a checkpoint file of the host."""
        weights = self.state_dict() if weights is None else weights
        return {
            there + name.removeprefix(here): value
            for here, there in _PREFIXES.items()
            for name, value in weights.items()
            if name.startswith(here)
        }

    def load_checkpoint(self, weights: Mapping[str, Tensor]) -> None:
        """What `checkpoint` gave."""
        for (_, there), part in zip(_PREFIXES.items(), (self.base.diffusion_model, self.text)):
            part.load_state_dict({k.removeprefix(there): v for k, v in weights.items() if k.startswith(there)})


class Loss:
    """Mean error of a random batch. `network`: the network that predicts, by default the model's own."""

    def __init__(self, model: Diffusion, latents: Tensor, tokens: Tensor, batch: int = BATCH, network=None):
        self.model, self.latents, self.tokens, self.batch = model, latents, tokens, batch
        self.network = model.base.diffusion_model if network is None else network

    def __call__(self, generator: torch.Generator | None = None) -> Tensor:
        """`generator`: on the device of the latents; without one, that device's own."""
        chance = {"generator": generator, "device": self.latents.device}
        empty = self.tokens.shape[1] - 1
        rows = torch.randint(len(self.latents), (self.batch,), **chance)
        said = torch.randint(empty, (self.batch,), **chance)
        said = torch.where(torch.rand(self.batch, **chance) < DROPOUT, empty, said)
        latents, tokens = self.latents[rows].float(), self.tokens[rows, said].long()
        noise = torch.randn(latents.shape, **chance)
        sigma = self.model.draw_sigma(self.batch, generator)
        with ExitStack() as stack:
            if latents.device.type == "cpu":
                stack.enter_context(torch.autocast("cpu", torch.bfloat16))
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            return self.model(latents, tokens, sigma, noise, self.network).mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("family", choices=tuple(ENDS))
    parser.add_argument("--name", help="of the files, if it is not the family's")
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--chunks", type=int, default=160, help="of the latents to train on")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--keep", type=int, nargs="*", default=(), help="steps whose weights are kept")
    parser.add_argument("--compile", action="store_true", help="faster after some minutes; needs a C++ compiler")
    parser.add_argument("--muon", type=float, default=2e-3, help="learning rate of the hidden matrices")
    options = parser.parse_args()
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    comfy.cli_args.args.use_pytorch_cross_attention = True
    import comfy.model_management

    comfy.model_management.in_training = True  # the host's fused kernels have no gradient
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    model = Diffusion(options.family)
    optimizer = Optimizer(model, ENDS[options.family], muon=options.muon)
    training = Training(options.name or options.family, model, optimizer, options.folder, SEED)
    latents, tokens = latents_of(options.folder, range(options.chunks))
    network = torch.compile(model.base.diffusion_model) if options.compile else None
    training.run(options.steps, Loss(model, latents, tokens, options.batch, network), keep=tuple(options.keep))


if __name__ == "__main__":
    main()
