"""The kind of a MODEL, by the name that papers and users give it.

Relies on: `model_config` of the host's models, an instance of the class in comfy/supported_models.py that fits the
checkpoint, with the network's settings in `unet_config` (comfy/model_base.py:161). Distilled and fine-tuned checkpoints
cannot be recognised from their weights: SDXL Lightning is SDXL.
"""

from comfy.model_patcher import ModelPatcher

# By the name of the host's class, from the most specific name to the most general. Subclasses, such as those of our
# demo models, are kinds of their own.
_KINDS: dict[str, tuple[str, ...]] = {
    "SD15": ("SD1.5",),
    "SD15_instructpix2pix": ("SD1.5",),
    "SD20": ("SD2",),
    "SDXL": ("SDXL",),
    "SDXL_instructpix2pix": ("SDXL",),
    "SSD1B": ("SSD-1B",),
    "SD3": ("SD3",),
    "Flux": ("Flux dev", "Flux"),
    "FluxInpaint": ("Flux dev", "Flux"),
    "FluxSchnell": ("Flux schnell", "Flux"),
    "Flux2": ("Flux.2",),
    "HunyuanVideoI2V": ("HunyuanVideo I2V", "HunyuanVideo"),
    "HunyuanVideoSkyreelsI2V": ("HunyuanVideo I2V", "HunyuanVideo"),
    "HunyuanVideo15": ("HunyuanVideo 1.5",),
    "HunyuanVideo15_SR_Distilled": ("HunyuanVideo 1.5",),
    "HunyuanImage21": ("HunyuanImage 2.1",),
    "WAN21_T2V": ("Wan",),
    "WAN22_T2V": ("Wan 2.2 5B", "Wan"),
    "WAN21_I2V": ("Wan I2V", "Wan"),
    "WAN21_FunControl2V": ("Wan Fun Control", "Wan I2V", "Wan"),
    "WAN21_Camera": ("Wan Camera", "Wan I2V", "Wan"),
    "WAN22_Camera": ("Wan Camera", "Wan I2V", "Wan"),
    "WAN22_Animate": ("Wan Animate", "Wan I2V", "Wan"),
    "WAN21_Vace": ("Wan VACE", "Wan"),
    "ChromaRadiance": ("Chroma Radiance", "Chroma"),
    "QwenImage": ("Qwen-Image",),
    "ZImage": ("Z-Image",),
    "ACEStep": ("ACE-Step",),
    "ACEStep15": ("ACE-Step 1.5",),
}
# SD3 medium and SD3.5 medium have 24 blocks; the latter has a second attention in some of them.
_BLOCKS_OF_MEDIUM = 24


def kinds_of(model: ModelPatcher) -> tuple[str, ...]:
    """The names of a MODEL's kind, from the most specific to the most general; never empty."""
    config = getattr(model.model, "model_config", model.model)  # other packs' models may have none
    name, settings = type(config).__name__, getattr(config, "unet_config", {})
    if name == "SD3":
        return _kinds_of_sd3(settings)
    if name == "WAN21_T2V" and settings.get("in_dim") == 36:
        return _KINDS["WAN21_I2V"]  # Wan 2.2's I2V model, which has no image tokens
    return _KINDS.get(name, (name,))


def _kinds_of_sd3(settings: dict) -> tuple[str, ...]:
    second, blocks = settings.get("x_block_self_attn_layers"), settings.get("depth")
    if blocks == _BLOCKS_OF_MEDIUM:
        return ("SD3.5 medium" if second else "SD3 medium", "SD3")
    return ("SD3.5 large", "SD3") if blocks is not None and blocks > _BLOCKS_OF_MEDIUM else ("SD3",)
