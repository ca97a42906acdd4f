"""The models that templates load. Files, folders and addresses are those of the host's own templates, so that people
who have run those have the files; files that the host's templates do not load come from their authors' pages.

Each function adds the loaders, and the nodes that usually follow them in workflows for the family.
"""

from __future__ import annotations

from typing import NamedTuple

from .graph import File, Graph, Node, Output

_HUB = "https://huggingface.co"


def _file(directory: str, path: str, name: str | None = None) -> File:
    """`path`: owner/repository/path of the file there; `name`: its name here, if it differs."""
    owner, repository, inside = path.split("/", 2)
    url = f"{_HUB}/{owner}/{repository}/resolve/main/{inside}"
    return File(name or inside.rsplit("/", 1)[-1], directory, url)


SDXL_BASE = _file("checkpoints", "stabilityai/stable-diffusion-xl-base-1.0/sd_xl_base_1.0.safetensors")
SD15_BASE = _file("checkpoints", "Comfy-Org/stable-diffusion-v1-5-archive/v1-5-pruned-emaonly-fp16.safetensors")
SD35_MEDIUM = _file(
    "checkpoints", "Comfy-Org/stable-diffusion-3.5-fp8/sd3.5_medium_incl_clips_t5xxlfp8scaled.safetensors"
)
FLUX_DEV = _file("diffusion_models", "Comfy-Org/flux1-dev/flux1-dev.safetensors")
FLUX_SCHNELL = _file("diffusion_models", "Comfy-Org/flux1-schnell/flux1-schnell.safetensors")
CHROMA_HD = _file(
    "diffusion_models",
    "Comfy-Org/Chroma1-HD_repackaged/split_files/diffusion_models/Chroma1-HD-fp8mixed.safetensors",
)
QWEN_IMAGE = _file(
    "diffusion_models", "Comfy-Org/Qwen-Image_ComfyUI/split_files/diffusion_models/qwen_image_fp8_e4m3fn.safetensors"
)
QWEN_LIGHTNING = _file("loras", "lightx2v/Qwen-Image-Lightning/Qwen-Image-Lightning-8steps-V1.0.safetensors")
Z_IMAGE_TURBO = _file(
    "diffusion_models", "Comfy-Org/z_image_turbo/split_files/diffusion_models/z_image_turbo_bf16.safetensors"
)
_WAN22 = "Comfy-Org/Wan_2.2_ComfyUI_Repackaged/split_files"
WAN22 = {
    noise: _file("diffusion_models", f"{_WAN22}/diffusion_models/wan2.2_t2v_{noise}_noise_14B_fp8_scaled.safetensors")
    for noise in ("high", "low")
}
WAN22_4_STEPS = {
    noise: _file("loras", f"{_WAN22}/loras/wan2.2_t2v_lightx2v_4steps_lora_v1.1_{noise}_noise.safetensors")
    for noise in ("high", "low")
}

CLIP_L = _file("text_encoders", "comfyanonymous/flux_text_encoders/clip_l.safetensors")
T5 = _file("text_encoders", "comfyanonymous/flux_text_encoders/t5xxl_fp16.safetensors")
T5_FP8 = _file("text_encoders", "comfyanonymous/flux_text_encoders/t5xxl_fp8_e4m3fn_scaled.safetensors")
QWEN_VL = _file(
    "text_encoders",
    "Comfy-Org/Qwen-Image_ComfyUI/split_files/text_encoders/qwen_2.5_vl_7b_fp8_scaled.safetensors",
)
QWEN3 = _file("text_encoders", "Comfy-Org/z_image_turbo/split_files/text_encoders/qwen_3_4b.safetensors")
UMT5 = _file(
    "text_encoders",
    "Comfy-Org/Wan_2.1_ComfyUI_repackaged/split_files/text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors",
)

FLUX_VAE = _file("vae", "Comfy-Org/Lumina_Image_2.0_Repackaged/split_files/vae/ae.safetensors")
Z_IMAGE_VAE = _file("vae", "Comfy-Org/z_image_turbo/split_files/vae/ae.safetensors")
QWEN_VAE = _file("vae", "Comfy-Org/Qwen-Image_ComfyUI/split_files/vae/qwen_image_vae.safetensors")
WAN_VAE = _file("vae", f"{_WAN22}/vae/wan_2.1_vae.safetensors")

# Tuned to what people prefer, and to what they do not. The files of the last two have uninformative names on their
# pages.
SPO_SDXL = _file(
    "loras", "SPO-Diffusion-Models/SPO-SDXL_4k-p_10ep_LoRA/spo_sdxl_10ep_4k-data_lora_diffusers.safetensors"
)
NPO_SDXL = _file("loras", "wangfuyun/Diffusion-NPO/weights/sdxl/sdxl_beta2k_2kiter.safetensors")
KTO_SD15 = _file(
    "diffusion_models",
    "jacklishufan/diffusion-kto/unet/diffusion_pytorch_model.safetensors",
    "diffusion-kto.safetensors",
)
# The whole of CLIP: image encoder, text encoder, and the two projections into the space that they share.
_CLIP = ("openai/clip-vit-large-patch14/model.safetensors", "clip-vit-large-patch14.safetensors")
CLIP_SEES, CLIP_READS = _file("clip_vision", *_CLIP), _file("text_encoders", *_CLIP)


class Loaded(NamedTuple):
    model: Output
    clip: Output
    vae: Output


def checkpoint(graph: Graph, file: File) -> Loaded:
    loader = graph.add("CheckpointLoaderSimple", files=(file,), ckpt_name=file.name)
    return Loaded(*(loader[slot] for slot in range(3)))


def diffusion_model(graph: Graph, file: File, title: str | None = None, **options: int) -> Node:
    return graph.add("UNETLoader", title, files=(file,), unet_name=file.name, weight_dtype="default", **options)


def lora(graph: Graph, model: Output, file: File, **options: int) -> Node:
    return graph.add("LoraLoaderModelOnly", files=(file,), model=model, lora_name=file.name, **options)


def _parts(graph: Graph, model: File, text: File, kind: str, vae: File) -> Loaded:
    loaded = diffusion_model(graph, model)
    clip = graph.add("CLIPLoader", files=(text,), clip_name=text.name, type=kind, device="default")
    return Loaded(loaded[0], clip[0], _vae(graph, vae))


def _vae(graph: Graph, file: File) -> Output:
    return graph.add("VAELoader", files=(file,), vae_name=file.name)[0]


def sdxl(graph: Graph) -> Loaded:
    return checkpoint(graph, SDXL_BASE)


def sd15(graph: Graph) -> Loaded:
    return checkpoint(graph, SD15_BASE)


def sd35(graph: Graph) -> Loaded:
    return checkpoint(graph, SD35_MEDIUM)


def flux(graph: Graph, file: File) -> Loaded:
    model = diffusion_model(graph, file)
    names = {"clip_name1": CLIP_L.name, "clip_name2": T5.name}
    clip = graph.add("DualCLIPLoader", files=(CLIP_L, T5), type="flux", device="default", **names)
    return Loaded(model[0], clip[0], _vae(graph, FLUX_VAE))


def chroma(graph: Graph) -> Loaded:
    return _shifted(graph, _parts(graph, CHROMA_HD, T5_FP8, "chroma", FLUX_VAE), 1.0)


def z_image_turbo(graph: Graph) -> Loaded:
    return _shifted(graph, _parts(graph, Z_IMAGE_TURBO, QWEN3, "lumina2", Z_IMAGE_VAE), 3.0)


def qwen_image(graph: Graph, lightning: bool = False) -> Loaded:
    loaded = _parts(graph, QWEN_IMAGE, QWEN_VL, "qwen_image", QWEN_VAE)
    if lightning:
        added = lora(graph, loaded.model, QWEN_LIGHTNING, column=0)
        loaded = loaded._replace(model=added[0])
    return _shifted(graph, loaded, 3.1)


def _shifted(graph: Graph, loaded: Loaded, shift: float) -> Loaded:
    node = graph.add("ModelSamplingAuraFlow", model=loaded.model, shift=shift, column=0)
    return loaded._replace(model=node[0])


class Wan(NamedTuple):
    high: Output
    low: Output
    clip: Output
    vae: Output


def wan22(graph: Graph, in_4_steps: bool = False) -> Wan:
    """Two networks: one for the first half of the steps, at high noise, and one for the rest."""
    models = []
    for noise in ("high", "low"):
        model = diffusion_model(graph, WAN22[noise], f"Load Diffusion Model ({noise} noise)")[0]
        if in_4_steps:
            model = lora(graph, model, WAN22_4_STEPS[noise], column=0)[0]
        models.append(graph.add("ModelSamplingSD3", model=model, shift=5.0, column=0)[0])
    clip = graph.add("CLIPLoader", files=(UMT5,), clip_name=UMT5.name, type="wan", device="default", column=1)
    vae = graph.add("VAELoader", files=(WAN_VAE,), vae_name=WAN_VAE.name, column=1)[0]
    return Wan(*models, clip[0], vae)
