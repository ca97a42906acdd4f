"""Networks with random weights, built from the host's own classes: a tiny one per family, and for some a middle one."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import comfy.controlnet
import comfy.model_base
import comfy.sample
import comfy.samplers
import comfy.supported_models as supported
import torch
from comfy.model_base import ModelType
from comfy.model_patcher import ModelPatcher

SEED = 1
HANDED_OUT: list[ModelPatcher] = []  # of the running test, kept until it ends


@dataclass(frozen=True)
class Tiny:
    """How to build a family: class, reduced network settings, latent of one sample, text width, pooled width."""

    config: type
    network: dict
    latent: tuple[int, ...]
    context: int
    pooled: int = 0


_UNET = {
    "image_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": (1, 2),
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "context_dim": 16,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "legacy": False,
}
_FLUX = {
    "in_channels": 16,
    "out_channels": 16,
    "hidden_size": 32,
    "num_heads": 2,
    "depth": 2,
    "depth_single_blocks": 2,
    "axes_dim": [4, 6, 6],
    "theta": 10000,
    "mlp_ratio": 2.0,
    "context_in_dim": 12,
    "qkv_bias": True,
    "patch_size": 2,
}
_FLUX1 = {**_FLUX, "image_model": "flux", "vec_in_dim": 8, "guidance_embed": True, "txt_ids_dims": []}
_CHROMA = {
    **_FLUX,
    "image_model": "chroma",
    "in_channels": 64,
    "out_channels": 64,
    "in_dim": 64,
    "out_dim": 32,
    "hidden_dim": 16,
    "n_layers": 2,
    "txt_ids_dims": [],
    "vec_in_dim": None,
}
_SD3 = {
    "input_size": None,
    "in_channels": 16,
    "patch_size": 2,
    "depth": 2,
    "num_patches": 64,
    "adm_in_channels": 8,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 12, "out_features": 128}},
    "pos_embed_max_size": 8,
    "qk_norm": "rms",
}
_WAN = {
    "image_model": "wan2.1",
    "model_type": "t2v",
    "dim": 48,
    "ffn_dim": 64,
    "num_heads": 4,
    "num_layers": 2,
    "text_dim": 12,
    "freq_dim": 16,
    "text_len": 16,
    "in_dim": 16,
    "out_dim": 16,
    "patch_size": (1, 2, 2),
}
_QWEN = {
    "image_model": "qwen_image",
    "in_channels": 64,
    "out_channels": 16,
    "num_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 12,
    "axes_dims_rope": (4, 6, 6),
}
_LUMINA = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "dim": 48,
    "n_heads": 4,
    "n_kv_heads": 2,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "cap_feat_dim": 12,
    "axes_dims": [4, 4, 4],
    "axes_lens": [64] * 3,
    "qk_norm": True,
    "rope_theta": 10000.0,
}
_HUNYUAN = {
    **_FLUX,
    "image_model": "hunyuan_video",
    "patch_size": [1, 2, 2],
    "in_channels": 16,
    "vec_in_dim": 8,
    "guidance_embed": True,
    "byt5": False,
    "meanflow": False,
    "meanflow_sum": False,
    "use_cond_type_embedding": False,
    "vision_in_dim": None,
}

FAMILIES = {
    "unet": Tiny(supported.SD15, _UNET, (4, 8, 8), 16),
    "sd3": Tiny(supported.SD3, _SD3, (16, 8, 8), 12, 8),
    "flux": Tiny(supported.Flux, _FLUX1, (16, 8, 8), 12, 8),
    "chroma": Tiny(supported.Chroma, _CHROMA, (16, 8, 8), 12, 8),
    "hunyuan_video": Tiny(supported.HunyuanVideo, _HUNYUAN, (16, 2, 8, 8), 12, 8),
    "wan": Tiny(supported.WAN21_T2V, _WAN, (16, 2, 8, 8), 12),
    "qwen_image": Tiny(supported.QwenImage, _QWEN, (16, 1, 8, 8), 12),
    "lumina2": Tiny(supported.Lumina2, _LUMINA, (16, 8, 8), 12),
}


# Wide enough for the kernels of a GPU, with 256 tokens at least.
_MIDDLE = {
    "unet": ({"image_size": 32, "model_channels": 256, "context_dim": 64}, (4, 32, 32), 64),
    "sd3": (
        {
            "depth": 4,
            "num_patches": 256,
            "pos_embed_max_size": 16,
            "context_embedder_config": {
                "target": "torch.nn.Linear",
                "params": {"in_features": 12, "out_features": 256},
            },
        },
        (16, 32, 32),
        12,
    ),
    "flux": ({"hidden_size": 256, "num_heads": 4, "axes_dim": [16, 24, 24]}, (16, 32, 32), 12),
    "wan": ({"dim": 256, "ffn_dim": 512}, (16, 2, 32, 32), 12),
    "qwen_image": (
        {"attention_head_dim": 64, "num_attention_heads": 4, "axes_dims_rope": (16, 24, 24)},
        (16, 1, 32, 32),
        12,
    ),
    "lumina2": ({"dim": 256, "axes_dims": [16, 24, 24]}, (16, 32, 32), 12),
}
MIDDLE = {
    f"{family} middle": Tiny(tiny.config, {**tiny.network, **settings}, latent, context, tiny.pooled)
    for family, (settings, latent, context) in _MIDDLE.items()
    for tiny in [FAMILIES[family]]
}


@dataclass(frozen=True)
class Kind:
    """Types and device of a network. `weights`: the type of the weights; `computes`: the type in which it computes;
    `rounds`: the type to which the weights were rounded before, so that networks of two kinds have the same ones;
    `prepare(config)`: settings for how layers keep their weights, which `fill(network, weights)` gives them; `patcher`:
    of which class."""

    weights: torch.dtype = torch.float32
    computes: torch.dtype = torch.float32
    rounds: torch.dtype | None = None
    prepare: Callable | None = None
    fill: Callable | None = None
    device: str = "cpu"
    patcher: type[ModelPatcher] = ModelPatcher


@dataclass(frozen=True)
class Made:
    """How a network was made: kept on the model."""

    family: str
    kind: Kind


def of(family: str) -> Tiny:
    return FAMILIES.get(family) or MIDDLE[family]


@cache
def _patcher(family: str, model_type: ModelType | None, kind: Kind) -> ModelPatcher:
    return build(of(family).network, family, model_type, kind=kind)


def build(
    network: dict,
    family: str = "unet",
    model_type: ModelType | None = None,
    dtype: torch.dtype = torch.float32,
    kind: Kind | None = None,
    config: type | None = None,
) -> ModelPatcher:
    """A MODEL of a family with other network settings; its weights in `dtype`, what is computed in float32 at least; or
    of a kind. `config`: another class of the host's."""
    kind = kind or Kind(dtype, dtype if dtype.itemsize >= 4 else torch.float32)
    config = (config or of(family).config)(dict(network))
    if family.startswith("unet"):
        config.unet_config |= {"num_heads": 4, "num_head_channels": -1}
    config.set_inference_dtype(kind.weights, None if kind.weights == kind.computes else kind.computes)
    if kind.prepare:
        kind.prepare(config)
    if model_type is not None:
        config.model_type = lambda *args, **kwargs: model_type
    with _whole_layers():
        model = config.get_model({}, "")
    model.made = Made(family, kind)
    generator = torch.Generator().manual_seed(SEED)
    _fill(model.diffusion_model, kind, lambda name, shape: _weight(name, shape, generator))
    model.diffusion_model.requires_grad_(False)
    for buffer in model.diffusion_model.buffers():
        if buffer.is_floating_point():
            buffer.data = _rounded(torch.randn(buffer.shape, generator=generator) * 0.05, kind).to(kind.computes)
    return kind.patcher(model.eval(), load_device=torch.device(kind.device), offload_device=torch.device("cpu"))


@contextmanager
def _whole_layers() -> Iterator[None]:
    """With dynamic VRAM, linear layers are made without weights, which come with a state dict."""
    management = sys.modules.get("comfy.memory_management")
    if management is None or not management.aimdo_enabled:
        yield
        return
    management.aimdo_enabled = False
    try:
        yield
    finally:
        management.aimdo_enabled = True


def _weight(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    gain = 1.0 if len(shape) == 1 and not name.endswith("bias") else 0.0
    return gain + torch.randn(shape, generator=generator) * 0.05


def _rounded(weight: torch.Tensor, kind: Kind) -> torch.Tensor:
    return weight if kind.rounds is None else weight.to(kind.rounds).to(weight.dtype)


def _fill(network: torch.nn.Module, kind: Kind, weight: Callable[[str, torch.Size], torch.Tensor]) -> None:
    if kind.fill:
        kind.fill(network, weight)
        return
    for name, parameter in network.named_parameters():
        parameter.data = _rounded(weight(name, parameter.shape), kind).to(parameter.dtype)  # some stay in float32


def model(family: str, model_type: ModelType | None = None, kind: Kind = Kind()) -> ModelPatcher:  # noqa: B008 frozen
    """A MODEL of a family, as a loader would give it; the network is shared and never changed."""
    HANDED_OUT.append(_patcher(family, model_type, kind).clone())
    return HANDED_OUT[-1]


@cache
def _precise(family: str) -> ModelPatcher:
    dtype = torch.float64 if family in ("unet", "sd3") else torch.float32
    return build(FAMILIES[family].network, family, dtype=dtype)


def precise(family: str) -> ModelPatcher:
    """As `model`, in double precision where the host has it: its rotary embeddings take float32 at most."""
    HANDED_OUT.append(_precise(family).clone())
    return HANDED_OUT[-1]


@cache
def _worse(made: Made) -> ModelPatcher:
    patcher = build(of(made.family).network, made.family, kind=made.kind)
    first, second = (torch.Generator().manual_seed(seed) for seed in (SEED, 9))

    def weight(name: str, shape: torch.Size) -> torch.Tensor:
        return _weight(name, shape, first) + 0.02 * torch.randn(shape, generator=second)

    _fill(patcher.model.diffusion_model, made.kind, weight)
    return patcher


def family_of(patcher: ModelPatcher) -> str:
    """The family of a MODEL made by `model`."""
    return patcher.model.made.family


def worse(patcher: ModelPatcher) -> ModelPatcher:
    """A second network of the same family and kind, with other weights."""
    HANDED_OUT.append(_worse(patcher.model.made).clone())
    return HANDED_OUT[-1]


def conditioning(family: str, seed: int, tokens: int = 7) -> list:
    """A random prompt."""
    tiny = of(family)
    generator = torch.Generator().manual_seed(seed)
    extra = {"pooled_output": torch.randn((1, tiny.pooled), generator=generator)} if tiny.pooled else {}
    if family == "flux middle":  # the host multiplies it by 1000 in the network's type: bfloat16 has 4000, not 3500
        extra["guidance"] = 4.0
    return [[torch.randn((1, tokens, tiny.context), generator=generator), extra]]


class _Control(comfy.controlnet.ControlBase):
    """Residuals for every block, as a ControlNet gives them."""

    def __init__(self, residuals: dict[str, list[torch.Tensor]]):
        super().__init__()
        self.residuals = residuals

    def get_control(self, x_noisy, *args):
        rows = x_noisy.shape[0]
        return {name: [r.expand(rows, *r.shape[1:]).clone() for r in rs] for name, rs in self.residuals.items()}


def controlled(prompt: list, family: str) -> list:
    """The prompt with a ControlNet of random residuals, for unet, sd3 and flux."""

    def normal(*shape, seed=0):
        return 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    if family == "unet":
        skips = [normal(1, c, s, s, seed=i) for i, (c, s) in enumerate([(32, 8), (32, 8), (32, 4), (64, 4)])]
        residuals = {"input": skips, "middle": [normal(1, 64, 4, 4)], "output": list(reversed(skips))}
    else:
        width = FAMILIES[family].network.get("hidden_size", 128)
        residuals = {n: [normal(1, 16, width, seed=i) for i in range(2)] for n in ("input", "output")}
    return [
        [cond, {**options, "control": _Control(residuals), "control_apply_to_uncond": False}]
        for cond, options in prompt
    ]


def noise(family: str, batch: int = 1, seed: int = 5) -> torch.Tensor:
    """Initial noise; the samples of a batch are the same whatever its size."""
    shape = of(family).latent
    return torch.cat(
        [torch.randn((1, *shape), generator=torch.Generator().manual_seed(seed + i)) for i in range(batch)]
    )


def sample(patcher, family, *, cfg=4.0, steps=4, sampler="euler", scheduler="simple", batch=1, latent=None, **options):
    """Samples with the host's own KSampler path; returns the latent."""
    positive = options.pop("positive", None) or conditioning(family, 11)
    negative = options.pop("negative", None) or conditioning(family, 22)
    HANDED_OUT.append(patcher)
    start = noise(family, batch)
    return comfy.sample.sample(
        patcher,
        start,
        steps,
        cfg,
        sampler,
        scheduler,
        positive,
        negative,
        torch.zeros_like(start) if latent is None else latent,
        seed=3,
        disable_pbar=True,
        **options,
    )
