"""Module names in diffusers for networks of which ComfyUI's list has only the authors' names.

Source: scripts/convert_wan_to_diffusers.py, scripts/convert_hunyuan_video_to_diffusers.py and
loaders/lora_conversion_utils.py of diffusers.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

_BLOCK = r"((?:vace_)?blocks\.\d+)"
WAN = {
    _BLOCK + r"\.self_attn\.([qkv])": r"\1.attn1.to_\2",
    _BLOCK + r"\.self_attn\.o": r"\1.attn1.to_out.0",
    _BLOCK + r"\.self_attn\.(norm_[qk])": r"\1.attn1.\2",
    _BLOCK + r"\.cross_attn\.([qkv])": r"\1.attn2.to_\2",
    _BLOCK + r"\.cross_attn\.o": r"\1.attn2.to_out.0",
    _BLOCK + r"\.cross_attn\.(norm_[qk])": r"\1.attn2.\2",
    _BLOCK + r"\.cross_attn\.([kv])_img": r"\1.attn2.add_\2_proj",
    _BLOCK + r"\.cross_attn\.norm_k_img": r"\1.attn2.norm_added_k",
    _BLOCK + r"\.ffn\.0": r"\1.ffn.net.0.proj",
    _BLOCK + r"\.ffn\.2": r"\1.ffn.net.2",
    _BLOCK + r"\.norm3": r"\1.norm2",
    r"(vace_blocks\.\d+)\.before_proj": r"\1.proj_in",
    r"(vace_blocks\.\d+)\.after_proj": r"\1.proj_out",
    r"time_embedding\.0": "condition_embedder.time_embedder.linear_1",
    r"time_embedding\.2": "condition_embedder.time_embedder.linear_2",
    r"text_embedding\.0": "condition_embedder.text_embedder.linear_1",
    r"text_embedding\.2": "condition_embedder.text_embedder.linear_2",
    r"time_projection\.1": "condition_embedder.time_proj",
    r"img_emb\.proj\.1": "condition_embedder.image_embedder.ff.net.0.proj",
    r"img_emb\.proj\.3": "condition_embedder.image_embedder.ff.net.2",
    r"head\.head": "proj_out",
}
# Without the blocks, which have the same names as in Flux. {} stands for one of the three parts of a fused weight.
_REFINER = r"txt_in\.individual_token_refiner\.blocks\.(\d+)"
_REFINED = r"context_embedder.token_refiner.refiner_blocks.\1"
HUNYUAN_VIDEO = {
    r"img_in\.proj": "x_embedder.proj",
    r"txt_in\.input_embedder": "context_embedder.proj_in",
    r"txt_in\.t_embedder\.in_layer": "context_embedder.time_text_embed.timestep_embedder.linear_1",
    r"txt_in\.t_embedder\.out_layer": "context_embedder.time_text_embed.timestep_embedder.linear_2",
    r"txt_in\.c_embedder\.in_layer": "context_embedder.time_text_embed.text_embedder.linear_1",
    r"txt_in\.c_embedder\.out_layer": "context_embedder.time_text_embed.text_embedder.linear_2",
    _REFINER + r"\.self_attn\.qkv": _REFINED + ".attn.to_{}",
    _REFINER + r"\.self_attn\.proj": _REFINED + ".attn.to_out.0",
    _REFINER + r"\.mlp\.0": _REFINED + ".ff.net.0.proj",
    _REFINER + r"\.mlp\.2": _REFINED + ".ff.net.2",
    _REFINER + r"\.adaLN_modulation\.1": _REFINED + ".norm_out.linear",
}


@dataclass(frozen=True)
class Alias:
    """The path of a module in diffusers. `third`: which of three equal parts of the weight's rows it is, from 0; None
    for the whole weight."""

    path: str
    third: int | None = None


def aliases(path: str, table: Mapping[str, str]) -> list[Alias]:
    """The paths in diffusers of the module `path`; `table`: one of the tables above."""
    for pattern, name in table.items():
        if match := re.fullmatch(pattern, path):
            name = match.expand(name)
            return [Alias(name.format(q), i) for i, q in enumerate("qkv")] if "{}" in name else [Alias(name)]
    return []
