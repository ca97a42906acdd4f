"""Files of adapters for the tiny networks: one random product per layout, and what a hand-made merge gives."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from comfy.weight_adapter import LoRAAdapter
from safetensors.torch import save_file
from torch import Tensor, nn

from guidekit.tests.host import tiny

RANK, ALPHA = 3, 6.0


@dataclass(frozen=True)
class Target:
    """A weight of a tiny network: its key, the path of its module as diffusers has it and as the authors do, the rows
    that diffusers' module is of it."""

    key: str
    diffusers: str
    part: tuple[int | None, int | None] = (None, None)

    @property
    def rows(self) -> slice:
        return slice(*self.part)

    @property
    def authors(self) -> str:
        return self.key.removeprefix("diffusion_model.").removesuffix(".weight")


UNET = (
    Target(
        "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
    ),
    Target(
        "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_out.0.weight",
        "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0",
    ),
    Target("diffusion_model.output_blocks.0.0.in_layers.2.weight", "up_blocks.0.resnets.0.conv1"),
    Target("diffusion_model.input_blocks.1.1.proj_in.weight", "down_blocks.0.attentions.0.proj_in"),
)
FLUX = (
    Target("diffusion_model.double_blocks.0.img_attn.qkv.weight", "transformer_blocks.0.attn.to_k", (32, 64)),
    Target("diffusion_model.single_blocks.1.linear1.weight", "single_transformer_blocks.1.attn.to_q", (0, 32)),
    Target("diffusion_model.double_blocks.1.txt_mlp.0.weight", "transformer_blocks.1.ff_context.net.0.proj"),
)


# The same as the authors of Flux name them, where they are not split.
FLUX_WHOLE = tuple(Target(t.key, t.diffusers) for t in FLUX)


def flat(path: str) -> str:
    return path.replace(".", "_")


def processor(path: str) -> str:
    """The name in diffusers before 0.22."""
    head, _, tail = path.partition(".to_")
    return f"{head}.processor.to_{tail.removesuffix('.0')}"


# How a layout calls the two factors of a module; None where it cannot have one.
Names = Callable[[Target], tuple[str, str] | None]


def _pair(prefix: Callable[[Target], str], down: str, up: str) -> Names:
    return lambda target: (f"{prefix(target)}{down}", f"{prefix(target)}{up}")


KOHYA = ".lora_down.weight", ".lora_up.weight"
PEFT = ".lora_A.weight", ".lora_B.weight"
DIFFUSERS = ".lora.down.weight", ".lora.up.weight"

# Those that core's loader ignores on UNets without an error.
IGNORED: dict[str, Names] = {
    "diffusers": _pair(lambda t: f"unet.{t.diffusers}", *DIFFUSERS),
    "PEFT in diffusers": _pair(lambda t: f"unet.{t.diffusers}", *PEFT),
    "PEFT": _pair(lambda t: f"base_model.model.{t.diffusers}", *PEFT),
    "PEFT of a pipeline": _pair(lambda t: f"base_model.model.unet.{t.diffusers}", *PEFT),
    "PEFT with its adapter's name": _pair(
        lambda t: f"unet.{t.diffusers}", ".lora_A.default.weight", ".lora_B.default.weight"
    ),
}
LOADED: dict[str, Names] = {
    "kohya": _pair(lambda t: f"lora_unet_{flat(t.authors)}", *KOHYA),
    "kohya of diffusers": _pair(lambda t: f"lora_unet_{flat(t.diffusers)}", *KOHYA),
    "ComfyUI's trainer": _pair(lambda t: f"diffusion_model.{t.authors}", *KOHYA),
    "ComfyUI with PEFT's parts": _pair(lambda t: f"diffusion_model.{t.authors}", *PEFT),
    "LyCORIS": _pair(lambda t: f"lycoris_{flat(t.diffusers)}", *KOHYA),
    "processors": lambda t: (
        (f"unet.{processor(t.diffusers)}_lora.down.weight", f"unet.{processor(t.diffusers)}_lora.up.weight")
        if ".to_" in t.diffusers
        else None
    ),
}
UNET_LAYOUTS = IGNORED | LOADED
FLUX_LAYOUTS: dict[str, Names] = {
    "diffusers": _pair(lambda t: f"transformer.{t.diffusers}", *PEFT),
    "diffusers, old parts": _pair(lambda t: f"transformer.{t.diffusers}", *DIFFUSERS),
    "PEFT": _pair(lambda t: f"base_model.model.transformer.{t.diffusers}", *PEFT),
    "bare": _pair(lambda t: t.diffusers, *PEFT),
    "OneTrainer": _pair(lambda t: f"lora_transformer_{flat(t.diffusers)}", *KOHYA),
    "LyCORIS": _pair(lambda t: f"lycoris_{flat(t.diffusers)}", *KOHYA),
}


FLUX_WHOLE_LAYOUTS = {name: LOADED[name] for name in ("kohya", "ComfyUI's trainer", "ComfyUI with PEFT's parts")}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return 0.2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def factors(weight: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """(down, up) for a weight, in its own number of dimensions."""
    down = normal(RANK, *weight.shape[1:], seed=seed)
    up = normal(weight.shape[0], RANK, *[1] * (weight.ndim - 2), seed=seed + 100)
    return down, up


def product(down: Tensor, up: Tensor) -> Tensor:
    """B A in double precision."""
    return (up.flatten(1).double() @ down.flatten(1).double()).reshape(len(up), *down.shape[1:])


def weights_of(model) -> dict[str, Tensor]:
    """As they are without any patch."""
    return {key: value[0][0].detach() for key, value in model.get_key_patches("diffusion_model.").items()}


def file_of(path, model, targets, layout: Names, alpha: float | None = ALPHA, metadata=None) -> dict[str, Tensor]:
    """Writes the file; returns the changes at strength 1 by key."""
    tensors, changes, weights = {}, {}, weights_of(model)
    for seed, target in enumerate(targets):
        names = layout(target)
        if names is None:
            continue
        weight = weights[target.key][target.rows]
        down, up = factors(weight, seed)
        tensors |= {names[0]: down, names[1]: up}
        change = product(down, up)
        if alpha is not None:
            module = re.split(r"[._]lora[._]|\.lora_linear_layer\.", names[0].removeprefix("lora_"))[0]
            start = "lora_" if names[0].startswith("lora_") else ""
            tensors[f"{start}{module}.alpha"] = torch.tensor(alpha)
            change *= alpha / RANK
        full = torch.zeros_like(weights[target.key], dtype=torch.float64)
        full[target.rows] = change
        changes[target.key] = full
    save_file(tensors, path, metadata=metadata)
    return changes


def lora(model, strength: float = 1.0, seed: int = 0, rank: int = 2):
    """A clone of a MODEL with random products on every linear layer and convolution of its network, and some biases."""
    patches = {}
    for name, module in model.model.named_modules():
        layer = isinstance(module, (nn.Conv2d, nn.Conv3d)) or hasattr(module, "in_features")
        if not name.startswith("diffusion_model.") or not layer:
            continue
        weight, seed = module.weight, seed + 1
        down = normal(rank, *weight.shape[1:], seed=seed)
        up = normal(len(weight), rank, *[1] * (weight.ndim - 2), seed=seed + 10_000)
        patches[f"{name}.weight"] = LoRAAdapter(set(), (up, down, 1.5, None, None, None))
        if module.bias is not None and seed % 3 == 0:
            patches[f"{name}.bias"] = ("diff", (0.3 * normal(*module.bias.shape, seed=seed),))
    changed = model.clone()
    changed.add_patches(patches, strength)
    tiny.HANDED_OUT.append(changed)
    return changed
