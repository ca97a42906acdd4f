"""Text encoders with random weights for the tiny networks: the host's own classes and tokenizers, with few channels."""

from collections.abc import Callable
from functools import cache

import comfy.sd
import comfy.supported_models_base
import comfy.text_encoders.flux
import comfy.text_encoders.pixart_t5
import comfy.text_encoders.qwen_image
import comfy.text_encoders.sd3_clip
import comfy.text_encoders.z_image
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd1_clip import SD1ClipModel, SD1Tokenizer

from guidekit.tests.host import tiny

POOLED = 8


def _clip(width: int) -> dict:
    sizes = {"hidden_size": width, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
    return {**sizes, "hidden_act": "quick_gelu", "max_position_embeddings": 77}


def _t5(width: int) -> dict:
    return {"d_model": width, "d_ff": 16, "d_kv": 8, "num_heads": 2, "num_layers": 2}


def _qwen(width: int) -> dict:
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return {"hidden_size": width, "intermediate_size": 16, "num_hidden_layers": 3, **heads}


# By family: tokenizer, model, and the settings of its parts by the names that the host has for them.
_MADE: dict[str, tuple[type, type | Callable, dict]] = {
    "unet": (SD1Tokenizer, SD1ClipModel, {"clip_l_model_config": _clip(16)}),
    "sd3": (
        comfy.text_encoders.sd3_clip.SD3Tokenizer,
        comfy.text_encoders.sd3_clip.sd3_clip(t5=False),
        {"clip_l_model_config": _clip(POOLED), "clip_g_model_config": _clip(2 * POOLED)},
    ),
    "flux": (
        comfy.text_encoders.flux.FluxTokenizer,
        comfy.text_encoders.flux.FluxClipModel,
        {"clip_l_model_config": _clip(POOLED), "t5xxl_model_config": _t5(12)},
    ),
    "chroma": (
        comfy.text_encoders.pixart_t5.PixArtTokenizer,
        comfy.text_encoders.pixart_t5.PixArtT5XXL,
        {"t5xxl_model_config": _t5(12)},
    ),
    # Its own encoder has eyes, which no setting makes small.
    "qwen_image": (
        comfy.text_encoders.qwen_image.QwenImageTokenizer,
        comfy.text_encoders.qwen_image.QwenImageTEModel,
        {"qwen25_7b_class": comfy.text_encoders.z_image.Qwen3_4BModel, "qwen25_7b_model_config": _qwen(12)},
    ),
    "lumina2": (
        comfy.text_encoders.z_image.ZImageTokenizer,
        comfy.text_encoders.z_image.ZImageTEModel,
        {"qwen3_4b_model_config": _qwen(12)},
    ),
}
FAMILIES = tuple(_MADE)
# SD3's encoder fills up to 4096 channels, whatever there is.
_SD3 = {
    **tiny.FAMILIES["sd3"].network,
    "adm_in_channels": 3 * POOLED,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 128}},
}


@cache
def clip(family: str) -> comfy.sd.CLIP:
    """A CLIP whose texts are as wide as the network's, as `model` gives it."""
    tokenizer, encoder, settings = _MADE[family]
    target = comfy.supported_models_base.ClipTarget(tokenizer, encoder)
    found = comfy.sd.CLIP(target, model_options={"dtype": torch.float32, **settings})
    generator = torch.Generator().manual_seed(4)
    for name, parameter in found.cond_stage_model.named_parameters():
        scale = 1.0 if "norm" in name or "embed" in name or name.endswith("shared.weight") else 0.3
        parameter.data = scale * torch.randn(parameter.shape, generator=generator)
    return found


@cache
def _model(family: str) -> ModelPatcher:
    return tiny.build(_SD3, "sd3") if family == "sd3" else tiny.model(family)


def model(family: str) -> ModelPatcher:
    return _model(family).clone()
