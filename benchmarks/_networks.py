"""Networks of real size with random weights, made of the host's own classes, and smaller ones of the same shape."""

import re
from dataclasses import dataclass, replace
from typing import Any

import comfy.sample
import comfy.supported_models as supported
import torch
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter import LoRAAdapter
from torch import Tensor, nn

_UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "use_spatial_transformer": True,
    "legacy": False,
}
SD15 = {
    **_UNET,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "context_dim": 768,
    "use_linear_in_transformer": False,
    "num_heads": 8,
    "num_head_channels": -1,
}
SDXL = {
    **_UNET,
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_middle": 10,
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "context_dim": 2048,
    "use_linear_in_transformer": True,
    "num_heads": -1,
    "num_head_channels": 64,
    "num_classes": "sequential",
    "adm_in_channels": 2816,
}
SD35 = {
    "input_size": None,
    "in_channels": 16,
    "patch_size": 2,
    "depth": 24,
    "num_patches": 64 * 64,  # the table of positions is only as large as needed here
    "adm_in_channels": 2048,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 1536}},
    "pos_embed_max_size": 64,
    "qk_norm": "rms",
    "x_block_self_attn_layers": list(range(13)),
}
FLUX = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "hidden_size": 3072,
    "num_heads": 24,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "mlp_ratio": 4.0,
    "depth": 19,
    "depth_single_blocks": 38,
    "context_in_dim": 4096,
    "vec_in_dim": 768,
    "guidance_embed": True,
    "qkv_bias": True,
    "txt_ids_dims": [],
}
_FLUX = {name: value for name, value in FLUX.items() if name not in ("guidance_embed", "txt_ids_dims")}
CHROMA = {
    **_FLUX,
    "image_model": "chroma",
    "in_channels": 64,
    "out_channels": 64,
    "in_dim": 64,
    "out_dim": 3072,
    "hidden_dim": 5120,
    "n_layers": 5,
    "vec_in_dim": None,
    "txt_ids_dims": [],
}
HUNYUAN_VIDEO = {
    **_FLUX,
    "image_model": "hunyuan_video",
    "guidance_embed": True,
    "patch_size": [1, 2, 2],
    "depth": 20,
    "depth_single_blocks": 40,
    "axes_dim": [16, 56, 56],
    "theta": 256,
    "byt5": False,
    "meanflow": False,
    "meanflow_sum": False,
    "use_cond_type_embedding": False,
    "vision_in_dim": None,
}
Z_IMAGE = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "dim": 3840,
    "n_heads": 30,
    "n_kv_heads": 30,
    "n_layers": 30,
    "n_refiner_layers": 2,
    "cap_feat_dim": 2560,
    "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512],
    "qk_norm": True,
    "rope_theta": 256.0,
    "ffn_dim_multiplier": 8 / 3,
    "z_image_modulation": True,
    "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}
QWEN_IMAGE = {
    "image_model": "qwen_image",
    "in_channels": 64,
    "out_channels": 16,
    "num_layers": 60,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 3584,
    "axes_dims_rope": (16, 56, 56),
}
WAN_14B = {
    "image_model": "wan2.1",
    "model_type": "t2v",
    "dim": 5120,
    "ffn_dim": 13824,
    "num_heads": 40,
    "num_layers": 40,
    "text_dim": 4096,
    "freq_dim": 256,
    "text_len": 512,
    "in_dim": 16,
    "out_dim": 16,
    "patch_size": (1, 2, 2),
}


@dataclass(frozen=True)
class Network:
    """`config`, `settings`: the host's class and its settings for the network. `latent`: the shape of one sample.
    `text`: (tokens, channels) of a prompt; `pooled`: channels of its vector. `name` says how it differs from what users
    have."""

    name: str
    config: type
    settings: dict[str, Any]
    latent: tuple[int, ...]
    text: tuple[int, int]
    pooled: int = 0

    @property
    def size(self) -> str:
        return " x ".join(str(n) for n in self.latent[1:])

    def noise(self, batch: int = 1) -> Tensor:
        return torch.randn((batch, *self.latent), generator=torch.Generator().manual_seed(5))

    def prompt(self, seed: int) -> list:
        """A random one, as a text encoder gives it."""
        generator = torch.Generator().manual_seed(seed)
        extra = {"pooled_output": torch.randn((1, self.pooled), generator=generator)} if self.pooled else {}
        return [[torch.randn((1, *self.text), generator=generator), extra]]

    def sample(self, model: ModelPatcher, cfg: float, steps: int, batch: int = 1, callback: Any = None) -> Tensor:
        """Samples as KSampler does."""
        noise = self.noise(batch)
        prompts = self.prompt(11), self.prompt(22)
        settings = (steps, cfg, "euler", "simple", *prompts, torch.zeros_like(noise))
        return comfy.sample.sample(model, noise, *settings, seed=3, callback=callback, disable_pbar=True)


FULL = {
    "sdxl": Network("SDXL", supported.SDXL, SDXL, (4, 128, 128), (77, 2048), 1280),
    "flux": Network("Flux dev", supported.Flux, FLUX, (16, 128, 128), (256, 4096), 768),
    "sd15": Network("SD1.5", supported.SD15, SD15, (4, 64, 64), (77, 768)),
    "z_image": Network("Z-Image", supported.ZImage, Z_IMAGE, (16, 128, 128), (128, 2560)),
    "wan": Network("Wan 2.1 14B", supported.WAN21_T2V, WAN_14B, (16, 21, 60, 104), (512, 4096)),
    "qwen_image": Network("Qwen-Image", supported.QwenImage, QWEN_IMAGE, (16, 1, 128, 128), (128, 3584)),
    "sd35": Network("SD3.5 medium", supported.SD3, SD35, (16, 128, 128), (154, 4096), 2048),
    "chroma": Network("Chroma", supported.Chroma, CHROMA, (16, 128, 128), (256, 4096)),
    "hunyuan_video": Network(
        "HunyuanVideo", supported.HunyuanVideo, HUNYUAN_VIDEO, (16, 33, 60, 104), (256, 4096), 768
    ),
}


def with_blocks(network: Network, count: int) -> Network:
    """The network with only its first blocks, for kinds whose blocks are all alike."""
    whole = network.settings["num_layers"]
    if count >= whole:
        return network
    settings = {**network.settings, "num_layers": count}
    return replace(network, name=f"{network.name}, {count} of {whole} blocks", settings=settings)


_SMALL_FLUX = {"hidden_size": 256, "num_heads": 2, "depth": 2, "depth_single_blocks": 2, "context_in_dim": 64}
_SMALL = {
    "sdxl": (
        {
            "model_channels": 64,
            "transformer_depth": [0, 0, 1, 1, 2, 2],
            "transformer_depth_middle": 2,
            "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2],
            "context_dim": 64,
        },
        (4, 32, 32),
    ),
    "flux": ({**_SMALL_FLUX, "vec_in_dim": 768}, (16, 32, 32)),
    "sd15": ({"model_channels": 64, "context_dim": 64}, (4, 32, 32)),
    "z_image": (
        {
            "dim": 256,
            "n_heads": 2,
            "n_kv_heads": 2,
            "n_layers": 3,
            "n_refiner_layers": 1,
            "cap_feat_dim": 64,
            "axes_lens": [256, 64, 64],
        },
        (16, 32, 32),
    ),
    "wan": ({"dim": 256, "ffn_dim": 512, "num_heads": 2, "num_layers": 3, "text_dim": 64}, (16, 3, 16, 16)),
    "qwen_image": ({"num_layers": 3, "num_attention_heads": 2, "joint_attention_dim": 64}, (16, 1, 32, 32)),
}
SMALL = {
    key: replace(
        FULL[key],
        name=f"{FULL[key].name}, small",
        settings={**FULL[key].settings, **settings},
        latent=latent,
        text=(min(FULL[key].text[0], 32), 64),
    )
    for key, (settings, latent) in _SMALL.items()
}


def build(network: Network, device: torch.device, dtype: torch.dtype, cast: torch.dtype | None = None) -> ModelPatcher:
    """A MODEL whose weights are created on their device. `cast`: the type for computing, if it is not that of the
    weights."""
    config = network.config(dict(network.settings))
    config.set_inference_dtype(dtype, cast)
    model = config.get_model({}, "", device=device)
    torch.manual_seed(0)
    for name, weight in model.diffusion_model.named_parameters():
        if weight.ndim == 1:
            weight.data.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            weight.data.normal_(0.0, 0.02)
    return ModelPatcher(model.eval(), load_device=device, offload_device=device)


def with_lora(model: ModelPatcher, rank: int = 16) -> ModelPatcher:
    """The MODEL with a random LoRA on all linear layers of its transformer blocks, as most files have it."""
    patches = {}
    for name, module in model.model.named_modules():
        if not isinstance(module, nn.Linear) or not re.search(r"(blocks|layers)\.\d", name):
            continue
        up, down = (0.02 * torch.randn(shape) for shape in ((module.out_features, rank), (rank, module.in_features)))
        patches[f"{name}.weight"] = LoRAAdapter(set(), (up, down, float(rank), None, None, None))
    changed = model.clone()
    changed.add_patches(patches, 1.0)
    return changed
