"""A tiny network with random weights for each kind of model that the host's templates load.

Each has the host's own class for its kind, and the channels of the real one where nodes of a template make them: those
of latents, of what is put beside them, and of image features. All take texts of one width.
"""

from dataclasses import dataclass
from functools import cache

import comfy.supported_models as supported
from comfy.model_patcher import ModelPatcher

from guidekit.tests.host import tiny

WIDTH, POOLED, VISION = 16, 1280, 1280  # of texts, of what is pooled of them, of image features


@dataclass(frozen=True)
class Network:
    """`family`: whose settings these change (tests/host/tiny.py); `config`: the host's class of the model."""

    family: str
    config: type
    settings: dict


_SEQUENTIAL = {"num_classes": "sequential"}
_JOINED = {"target": "torch.nn.Linear", "params": {"in_features": WIDTH, "out_features": 128}}
_HUNYUAN15 = {
    "in_channels": 65,
    "out_channels": 32,
    "patch_size": [1, 1, 1],
    "vec_in_dim": None,
    "guidance_embed": False,
    "byt5": True,
    "use_cond_type_embedding": True,
    "vision_in_dim": VISION,
    "meanflow_sum": True,
}
_HIDREAM = {
    "image_model": "hidream",
    "attention_head_dim": 16,
    "axes_dims_rope": [8, 4, 4],
    "caption_channels": [WIDTH, WIDTH],
    "max_resolution": [128, 128],
    "in_channels": 16,
    "llama_layers": [0, 1, 1, 1],
    "num_attention_heads": 2,
    "num_routed_experts": 2,
    "num_activated_experts": 1,
    "num_layers": 2,
    "num_single_layers": 2,
    "out_channels": 16,
    "patch_size": 2,
    "text_emb_dim": POOLED,
}
_FLUX2 = {
    "image_model": "flux2",
    "in_channels": 128,
    "out_channels": 128,
    "patch_size": 1,
    "axes_dim": [4, 4, 4, 4],
    "theta": 2000,
    "mlp_ratio": 3.0,
    "vec_in_dim": None,
    "guidance_embed": True,
    "global_modulation": True,
    "mlp_silu_act": True,
    "qkv_bias": False,
    "ops_bias": False,
    "default_ref_method": "index",
    "ref_index_scale": 10.0,
    "txt_ids_dims": [3],
}
_RADIANCE = {
    "image_model": "chroma_radiance",
    "in_channels": 3,
    "out_channels": 3,
    "patch_size": 16,
    "nerf_hidden_size": 16,
    "nerf_mlp_ratio": 2,
    "nerf_depth": 2,
    "nerf_max_freqs": 4,
    "nerf_tile_size": 512,
    "nerf_final_head_type": "conv",
    "nerf_embedder_dtype": None,
    "use_x0": True,
    "use_sequential_txt_ids": False,
}
_Z_IMAGE = {
    "z_image_modulation": True,
    "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
    "dim": 256,  # the least that its modulation takes
    "n_kv_heads": 4,
    "n_refiner_layers": 2,
    "axes_dims": [16, 24, 24],
}


def _wan(config: type, **settings) -> Network:
    return Network("wan", config, settings)


NETWORKS = {
    "SD1.5": Network("unet", supported.SD15, {}),
    "SDXL": Network("unet", supported.SDXL, {**_SEQUENTIAL, "adm_in_channels": 6 * 256 + POOLED}),
    "SDXL refiner": Network("unet", supported.SDXLRefiner, {**_SEQUENTIAL, "adm_in_channels": 5 * 256 + POOLED}),
    "Lotus": Network("unet", supported.LotusD, {**_SEQUENTIAL, "adm_in_channels": 4, "context_dim": 1024}),
    "SD3.5": Network("sd3", supported.SD3, {"adm_in_channels": POOLED, "context_embedder_config": _JOINED}),
    "Flux": Network("flux", supported.Flux, {"vec_in_dim": POOLED}),
    "Flux schnell": Network("flux", supported.FluxSchnell, {"vec_in_dim": POOLED, "guidance_embed": False}),
    "Flux canny": Network("flux", supported.Flux, {"vec_in_dim": POOLED, "in_channels": 32}),
    "Flux fill": Network("flux", supported.FluxInpaint, {"vec_in_dim": POOLED, "in_channels": 96}),
    "Flux.2": Network("flux", supported.Flux2, _FLUX2),
    "Flux.2 klein": Network("flux", supported.Flux2, {**_FLUX2, "guidance_embed": False}),
    "Chroma": Network("chroma", supported.Chroma, {}),
    "Chroma Radiance": Network("chroma", supported.ChromaRadiance, _RADIANCE),
    "Qwen-Image": Network("qwen_image", supported.QwenImage, {}),
    "Qwen-Image-Edit 2511": Network("qwen_image", supported.QwenImage, {"default_ref_method": "index_timestep_zero"}),
    "Qwen-Image-Layered": Network(
        "qwen_image",
        supported.QwenImage,
        {"use_additional_t_cond": True, "default_ref_method": "negative_index"},
    ),
    "Wan T2V": _wan(supported.WAN21_T2V),
    "Wan I2V": _wan(supported.WAN21_I2V, model_type="i2v", in_dim=36),
    "Wan InfiniteTalk": _wan(supported.WAN21_I2V, model_type="i2v", in_dim=36, dim=160),  # has 40 heads
    "Wan FLF2V": _wan(supported.WAN21_I2V, model_type="i2v", in_dim=36, flf_pos_embed_token_number=10),
    "Wan 2.2 I2V": _wan(supported.WAN21_T2V, in_dim=36),
    "Wan 2.2 5B": _wan(supported.WAN22_T2V, in_dim=48, out_dim=48),
    "Wan 2.2 5B inpaint": _wan(supported.WAN22_T2V, in_dim=100, out_dim=48),
    "Wan 2.2 5B control": _wan(supported.WAN22_T2V, in_dim=148, out_dim=48, in_dim_ref_conv=48),
    "Wan Fun Control": _wan(supported.WAN21_FunControl2V, model_type="i2v", in_dim=48),
    "Wan 2.2 Fun Control": _wan(supported.WAN21_T2V, in_dim=52, in_dim_ref_conv=16),
    "Wan Camera": _wan(supported.WAN21_Camera, model_type="camera", in_dim=32),
    "Wan 2.2 Camera": _wan(supported.WAN22_Camera, model_type="camera_2.2", in_dim=36),
    "Wan VACE": _wan(supported.WAN21_Vace, model_type="vace", vace_layers=1, vace_in_dim=96),
    "Wan S2V": _wan(supported.WAN22_S2V, model_type="s2v", audio_inject_layers=[0]),
    "Wan HuMo": _wan(supported.WAN21_HuMo, model_type="humo", in_dim=36),
    "Wan Dancer": _wan(supported.WAN22_WanDancer, model_type="wandancer", in_dim=36, audio_inject_layers=[0]),
    "Wan SCAIL-2": _wan(supported.WAN21_SCAIL2, model_type="scail2", in_dim=20),
    "Wan causal": _wan(supported.WAN21_CausalAR_T2V),
    "HunyuanVideo": Network("hunyuan_video", supported.HunyuanVideo, {"vec_in_dim": POOLED}),
    "HunyuanVideo 1.5": Network("hunyuan_video", supported.HunyuanVideo15, _HUNYUAN15),
    "Lumina": Network("lumina2", supported.Lumina2, {}),
    "Z-Image": Network("lumina2", supported.ZImage, _Z_IMAGE),
    "HiDream": Network("flux", supported.HiDream, _HIDREAM),
}
_TEXTS = {
    "unet": "context_dim",
    "sd3": None,
    "flux": "context_in_dim",
    "chroma": "context_in_dim",
    "qwen_image": "joint_attention_dim",
    "wan": "text_dim",
    "hunyuan_video": "context_in_dim",
    "lumina2": "cap_feat_dim",
}
_ALONE = ("HiDream",)  # no family of tiny.py


@cache
def network(kind: str) -> ModelPatcher:
    """A MODEL with random weights, the same in every process."""
    made = NETWORKS[kind]
    base = {} if kind in _ALONE else tiny.FAMILIES[made.family].network
    width = {} if kind in _ALONE or _TEXTS[made.family] is None else {_TEXTS[made.family]: WIDTH}
    return tiny.build({**base, **width, **made.settings}, made.family, config=made.config)
