"""The contents of a file in words, from the names in it."""

import re
from collections.abc import Iterable

# The pattern that matches most names decides; of equal ones the first.
_LAYOUTS = {
    "PEFT's OFT or BOFT (....oft_R, ....boft_R)": r".*\.(oft_[Rrs]|boft_[Rs])(\.|$)",
    "XLabs (double_blocks....processor.qkv_lora1)": r".*blocks\.\d+\.processor\.(qkv|proj)_lora",
    "kohya (lora_unet_..., lora_te_...)": r"lora_(unet|te\d?|prior_unet)_",
    "OneTrainer (lora_transformer_...)": r"lora_transformer_",
    "LyCORIS (lycoris_...)": r"lycoris_",
    "DiffSynth (pipe.dit....lora_A)": r"pipe\.dit\.",
    "ComfyUI's trainer (diffusion_model....lora_up)": r"diffusion_model\..*\.(lora_(up|down|A|B)|diff|diff_b|alpha)",
    "PEFT (base_model.model....lora_A)": r"base_model\.model\.",
    "attention processors of diffusers (....processor....to_q_lora.up)": r".*\.processor\..*lora",
    "diffusers (unet....lora.up)": r"(unet|transformer)\..*\.lora(\.|_linear_layer\.)(up|down)",
    "PEFT in diffusers (unet....lora_A)": r"(unet|transformer)\..*\.lora_(A|B|magnitude_vector)",
    "a text encoder's adapter": r"text_encoder(_\d)?\..*lora",
    "an adapter with bare paths (....lora_A)": r".*\.(lora_|hada_|lokr_|oft_|lora\.)",
    "a whole checkpoint (model.diffusion_model...., first_stage_model....)": r"model\.diffusion_model\.",
    "a whole network (diffusion_model....)": r"diffusion_model\.",
    "a whole UNet in the layout of diffusers (down_blocks....)": r"(down_blocks|up_blocks|mid_block|conv_in|conv_out"
    r"|time_embedding|add_embedding|conv_norm_out)\.",
    "a whole UNet in the layout of its authors (input_blocks....)": r"(input_blocks|output_blocks|middle_block)\.",
    "a VAE": r"(first_stage_model|encoder|decoder|quant_conv|post_quant_conv)\.",
    "a text encoder": r"(text_model|cond_stage_model|transformer\.text_model)\.",
    "an embedding": r"(emb_params|clip_[lgh]|string_to_param)",
}
ACCEPTED = (
    "LoRA, DoRA, LoHa or LoKr with the names of kohya, LyCORIS, OneTrainer, ComfyUI, diffusers, PEFT, DiffSynth or "
    "XLabs; OFT, BOFT or GLoRA with those of kohya, LyCORIS or ComfyUI; and whole networks of the model's kind with "
    "the names of diffusers or of the model itself"
)


def layout_of(names: Iterable[str]) -> str:
    """The layout of a file with these names, in words; for an unknown one with an example."""
    names = [name[:300] for name in names]  # limits the time that the patterns need
    counts = {title: sum(1 for name in names if re.match(pattern, name)) for title, pattern in _LAYOUTS.items()}
    title = max(counts, key=counts.__getitem__)
    if counts[title]:
        return title
    return f"unknown ({names[0]}, ...)" if names else "an empty file"
