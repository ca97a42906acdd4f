"""Tiny networks with random weights, built from the host's own classes: one per family."""

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


@cache
def _patcher(family: str, model_type: ModelType | None) -> ModelPatcher:
    return build(FAMILIES[family].network, family, model_type)


def build(
    network: dict, family: str = "unet", model_type: ModelType | None = None, dtype: torch.dtype = torch.float32
) -> ModelPatcher:
    """A MODEL of a family with other network settings; its weights in `dtype`, what is computed in float32 at least."""
    config = FAMILIES[family].config(dict(network))
    if family == "unet":
        config.unet_config |= {"num_heads": 4, "num_head_channels": -1}
    wide = dtype if dtype.itemsize >= 4 else torch.float32
    config.set_inference_dtype(dtype, None if dtype == wide else wide)
    if model_type is not None:
        config.model_type = lambda *args, **kwargs: model_type
    model = config.get_model({}, "")
    generator = torch.Generator().manual_seed(SEED)
    for name, parameter in model.diffusion_model.named_parameters():
        gain = 1.0 if parameter.ndim == 1 and not name.endswith("bias") else 0.0
        parameter.data = (gain + torch.randn(parameter.shape, generator=generator) * 0.05).to(dtype)
    for buffer in model.diffusion_model.buffers():
        if buffer.is_floating_point():
            buffer.data = (torch.randn(buffer.shape, generator=generator) * 0.05).to(wide)
    cpu = torch.device("cpu")
    return ModelPatcher(model.eval(), load_device=cpu, offload_device=cpu)


def model(family: str, model_type: ModelType | None = None) -> ModelPatcher:
    """A MODEL of a family, as a loader would give it; the network is shared and never changed."""
    HANDED_OUT.append(_patcher(family, model_type).clone())
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
def _worse(family: str) -> ModelPatcher:
    patcher = build(FAMILIES[family].network, family)
    generator = torch.Generator().manual_seed(9)
    for parameter in patcher.model.diffusion_model.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    return patcher


def family_of(patcher: ModelPatcher) -> str:
    """Of a MODEL of `model`."""
    return next(family for family, tiny in FAMILIES.items() if type(patcher.model.model_config) is tiny.config)


def worse(patcher: ModelPatcher) -> ModelPatcher:
    """A second network of the same family, with other weights."""
    HANDED_OUT.append(_worse(family_of(patcher)).clone())
    return HANDED_OUT[-1]


def conditioning(family: str, seed: int, tokens: int = 7) -> list:
    """A random prompt."""
    tiny = FAMILIES[family]
    generator = torch.Generator().manual_seed(seed)
    extra = {"pooled_output": torch.randn((1, tiny.pooled), generator=generator)} if tiny.pooled else {}
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
    shape = FAMILIES[family].latent
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
