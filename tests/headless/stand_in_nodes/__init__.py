"""Tiny networks in the place of the models that the templates load, for the headless tests only.

Where the host takes an architecture's sizes from the file, a file of a tiny network is written under the model's name,
and the host's own loader reads it: Flux, Wan, all VAEs, all LoRAs. Where it knows sizes beforehand (UNets, SD3's text
encoders, Z-Image, Qwen-Image, Chroma, every text encoder, CLIP vision), a node of this folder stands in for the loader.
"""

import dataclasses
import importlib.util
import json
import sys
from functools import cache
from pathlib import Path

import comfy.sd
import comfy.supported_models as supported
import comfy.supported_models_base
import comfy.utils
import torch
from comfy.clip_vision import ClipVisionModel
from comfy.ldm.wan.vae import WanVAE
from comfy.model_patcher import ModelPatcher
from comfy.sd1_clip import SD1ClipModel, SD1Tokenizer, SDClipModel
from comfy.taesd.taesd import TAESD
from comfy_api.latest import ComfyExtension, io
from safetensors.torch import save_file

WIDTH = 16  # of all texts


def _tiny_networks():
    """tests/host/tiny.py, which is on no path in a server."""
    path = Path(__file__).resolve().parents[2] / "host" / "tiny.py"
    spec = importlib.util.spec_from_file_location("guidekit_tiny_networks", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tiny = _tiny_networks()
_SDXL = {**tiny.FAMILIES["unet"].network, "num_classes": "sequential", "adm_in_channels": 6 * 256 + WIDTH}
tiny.FAMILIES["unet sdxl"] = dataclasses.replace(tiny.FAMILIES["unet"], config=supported.SDXL, network=_SDXL)
_LINEAR = tiny.FAMILIES["sd3"].network["context_embedder_config"]
# Settings by which networks take texts of this width, and those that the host's loaders suppose.
_SETTINGS = {
    "unet": {},
    "unet sdxl": {},
    "sd3": {
        "adm_in_channels": WIDTH,
        "context_embedder_config": {**_LINEAR, "params": {**_LINEAR["params"], "in_features": WIDTH}},
    },
    "chroma": {"context_in_dim": WIDTH},
    "qwen_image": {"joint_attention_dim": WIDTH},
    "lumina2": {"cap_feat_dim": WIDTH},
    "flux": {
        "hidden_size": 128,
        "num_heads": 1,
        "axes_dim": [16, 56, 56],
        "mlp_ratio": 4.0,
        "context_in_dim": WIDTH,
        "vec_in_dim": WIDTH,
    },
    "wan": {"dim": 128, "num_heads": 1, "text_dim": WIDTH},
}


def network(family: str, **settings) -> ModelPatcher:
    """A MODEL with random weights, the same in every process."""
    return tiny.build({**tiny.of(family).network, **_SETTINGS[family], **settings}, family)


class TinyEncoder(SDClipModel):
    def __init__(self, device="cpu", dtype=None, model_options={}):  # noqa: B006
        sizes = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        config = {**sizes, "hidden_act": "quick_gelu", "max_position_embeddings": 77, "eos_token_id": 49407}
        super().__init__(device=device, dtype=dtype, textmodel_json_config=config, model_options=model_options)


class TinyText(SD1ClipModel):
    def __init__(self, device="cpu", dtype=None, model_options={}):  # noqa: B006
        options = {"device": device, "dtype": dtype, "model_options": model_options}
        super().__init__(clip_name="l", clip_model=TinyEncoder, **options)


def text_encoder() -> comfy.sd.CLIP:
    target = comfy.supported_models_base.ClipTarget(SD1Tokenizer, TinyText)
    clip = comfy.sd.CLIP(target, model_options={"dtype": torch.float32})
    _fill(clip.cond_stage_model, 0.1, 6)
    return clip


def vision(folder: Path, width: int = WIDTH) -> ClipVisionModel:
    """Its features, and what it projects them to, are `width` numbers each."""
    config = {
        "hidden_size": width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "hidden_act": "quick_gelu",
        "image_size": 28,
        "patch_size": 14,
        "num_channels": 3,
        "projection_dim": width,
        "model_type": "clip_vision_model",
    }
    path = folder / f"tiny_vision_{width}.json"
    path.write_text(json.dumps(config))
    found = ClipVisionModel(str(path))
    _fill(found.model, 0.3, 7)
    return found


def _fill(module: torch.nn.Module, size: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * size


def _image_vae(channels: int) -> dict[str, torch.Tensor]:
    """As a file has it: TAESD, which is small in itself."""
    made = TAESD(latent_channels=channels)
    _fill(made, 0.05, 8)
    return made.state_dict()


# Files for the host's loaders ----------------------------------------------------------------------------------------


def write_diffusion_model(path: Path, family: str, **settings) -> None:
    made = network(family, **settings)
    # What the host takes from no shape of Wan's.
    known = {"text_dim": WIDTH, "text_len": 16, "freq_dim": 16}
    metadata = {"config": json.dumps({"transformer": known})} if family == "wan" else None
    save_file(_plain(made.model.diffusion_model.state_dict()), path, metadata)


def write_vae(path: Path, of_video: bool) -> None:
    if of_video:
        sizes = {"dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "temperal_downsample": [False, True, True]}
        made = WanVAE(dim=8, z_dim=16, attn_scales=[], dropout=0.0, **sizes)
        _fill(made, 0.1, 9)
        save_file(_plain(made.state_dict()), path)
    else:
        save_file(_plain(_image_vae(16)), path)


def write_lora(path: Path, family: str, weight: str, down: str, up: str) -> None:
    """One product, on `weight` of a family's network; `down` and `up`: its two keys."""
    rows, columns = network(family).model.diffusion_model.state_dict()[weight].shape
    generator = torch.Generator().manual_seed(10)
    shapes = {down: (2, columns), up: (rows, 2)}
    save_file({key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}, path)


def write_whole_network(path: Path, family: str) -> None:
    """Another one, under the names of diffusers."""
    made = network(family)
    diffusers = {
        ours: theirs for theirs, ours in comfy.utils.unet_to_diffusers(made.model.model_config.unet_config).items()
    }
    generator = torch.Generator().manual_seed(11)
    state = made.model.diffusion_model.state_dict()
    save_file(
        {diffusers.get(key, key): w + 0.05 * torch.randn(w.shape, generator=generator) for key, w in state.items()},
        path,
    )


def _plain(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: tensor.detach().clone().contiguous() for key, tensor in state.items()}


# Nodes in the place of loaders ---------------------------------------------------------------------------------------

_FAMILY = io.Combo.Input("family", options=[*_SETTINGS])


class Checkpoint(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        outputs = [io.Model.Output(), io.Clip.Output(), io.Vae.Output()]
        return io.Schema("TestCheckpoint", category="tests", inputs=[_FAMILY], outputs=outputs)

    @classmethod
    def execute(cls, family):
        vae = comfy.sd.VAE(sd=_image_vae(tiny.of(family).latent[0]))
        return io.NodeOutput(_network(family).clone(), text_encoder(), vae)


class DiffusionModel(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema("TestDiffusionModel", category="tests", inputs=[_FAMILY], outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, family):
        return io.NodeOutput(_network(family).clone())


@cache
def _network(family: str) -> ModelPatcher:
    return network(family)


class TextEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema("TestTextEncoder", category="tests", inputs=[], outputs=[io.Clip.Output()])

    @classmethod
    def execute(cls):
        return io.NodeOutput(text_encoder())


class Vision(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema("TestVision", category="tests", inputs=[], outputs=[io.ClipVision.Output()])

    @classmethod
    def execute(cls):
        import folder_paths

        return io.NodeOutput(vision(Path(folder_paths.get_temp_directory())))


class Numbers(io.ComfyNode):
    """What is in a latent, as text: whether it is finite, and its sum."""

    @classmethod
    def define_schema(cls):
        inputs = [io.Latent.Input("samples")]
        return io.Schema("TestNumbers", category="tests", inputs=inputs, outputs=[], is_output_node=True)

    @classmethod
    def execute(cls, samples):
        tensor = samples["samples"].double()
        weights = torch.linspace(1, 2, tensor.numel(), dtype=torch.double).reshape(tensor.shape)
        return io.NodeOutput(ui={"text": [f"{bool(tensor.isfinite().all())} {(tensor * weights).sum().item()!r}"]})


class StandIns(ComfyExtension):
    async def get_node_list(self):
        return [Checkpoint, DiffusionModel, TextEncoder, Vision, Numbers]


async def comfy_entrypoint():
    return StandIns()
