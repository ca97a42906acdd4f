"""The demo models as ComfyUI sees them: latent format, text encoder, networks, VAE.

Everything here is put together from the host's own classes, so that every stock node works on the result. The
two families differ in the network only: `unet` is of SD2 type (v-prediction), `dit` of Flux type (rectified flow).
"""

from pathlib import Path

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.sd
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import torch
from comfy.clip_model import CLIPEncoder
from comfy.model_base import ModelType
from comfy.model_patcher import ModelPatcher
from comfy.sd1_clip import SD1ClipModel, SDClipModel
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .autoencoder import CHANNELS, DOWNSCALE, Autoencoder
from .vocabulary import END, MAX_LENGTH, PAD, START, VOCABULARY
from .words import DemoTokenizer

TEXT_DIM = 96
TEXT_LAYERS = 3


class DemoLatent(comfy.latent_formats.LatentFormat):
    """The autoencoder's latents, whose variance is 1 without scaling. Previews are a linear fit (an rms error of
    0.06)."""

    latent_channels = CHANNELS
    scale_factor = 1.0
    spacial_downscale_ratio = DOWNSCALE
    latent_rgb_factors = [
        [-0.206, -0.158, -0.175],
        [0.122, -0.041, -0.206],
        [-0.058, 0.154, -0.037],
        [0.007, -0.003, 0.011],
        [0.006, 0.005, 0.006],
        [0.037, 0.031, 0.033],
        [-0.003, -0.010, -0.032],
        [-0.059, -0.047, -0.085],
    ]
    latent_rgb_factors_bias = [0.048, -0.039, -0.144]


class PooledTextUNet(comfy.model_base.BaseModel):
    """A UNet that takes the pooled text as its vector condition, beside cross-attention, as SDXL does."""

    def encode_adm(self, **kwargs):
        pooled = kwargs.get("pooled_output")
        if pooled is None:
            raise ValueError(
                "A prompt has no pooled output, and the demo model takes one. Encode it with the demo model's CLIP."
            )
        return pooled


class DemoUNet(comfy.supported_models.SD20):
    """The host's SD2 model (v-prediction) with a small network."""

    latent_format = DemoLatent
    unet_extra_config = {}
    network = {
        "image_size": 16,
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "model_channels": 64,
        "channel_mult": (1, 2),
        "num_res_blocks": [1, 1],
        "transformer_depth": [1, 1],
        "transformer_depth_output": [1, 1, 1, 1],
        "transformer_depth_middle": 1,
        "context_dim": TEXT_DIM,
        "num_classes": "sequential",
        "adm_in_channels": TEXT_DIM,
        "num_heads": -1,
        "num_head_channels": 32,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": True,
        "legacy": False,
    }

    def get_model(self, state_dict, prefix="", device=None):
        return PooledTextUNet(self, ModelType.V_PREDICTION, device=device)


class DemoDiT(comfy.supported_models.Flux):
    """The host's Flux model with a small network and unshifted timesteps."""

    latent_format = DemoLatent
    sampling_settings = {"shift": 0.0}  # exp(0) = 1: sigma = t
    network = {
        "image_model": "flux",
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "patch_size": 2,
        "hidden_size": 192,
        "num_heads": 6,
        "axes_dim": [4, 14, 14],
        "theta": 1000,
        "depth": 2,
        "depth_single_blocks": 4,
        "mlp_ratio": 4.0,
        "context_in_dim": TEXT_DIM,
        "vec_in_dim": TEXT_DIM,
        "qkv_bias": True,
        "guidance_embed": False,
        "txt_ids_dims": [],
    }


FAMILIES = {"unet": DemoUNet, "dit": DemoDiT}
MODELS = (*FAMILIES, "unet_early")  # the last one was trained briefly: a worse model, for autoguidance


def family_of(name: str) -> str:
    """The family of a model: its name up to "_"."""
    return name.partition("_")[0]


def family_of_model(model: ModelPatcher) -> str | None:
    """The family of a MODEL; None if it is no demo model."""
    return next((name for name, config in FAMILIES.items() if isinstance(model.model.model_config, config)), None)


def diffusion_model(family: str, device=None, dtype: torch.dtype = torch.float32) -> comfy.model_base.BaseModel:
    """The host model of a family, its weights not yet loaded."""
    config = FAMILIES[family](dict(FAMILIES[family].network))
    config.set_inference_dtype(dtype, None)
    return config.get_model({}, device=device)


class WordEncoder(torch.nn.Module):
    """A small bidirectional text transformer; `SDClipModel` calls it as it would call CLIP's."""

    def __init__(self, config: dict, dtype, device, operations):
        super().__init__()
        dim, self.num_layers = config["hidden_size"], config["num_hidden_layers"]
        self.token_embedding = operations.Embedding(len(VOCABULARY), dim, dtype=dtype, device=device)
        self.position_embedding = operations.Embedding(MAX_LENGTH, dim, dtype=dtype, device=device)
        self.encoder = CLIPEncoder(self.num_layers, dim, dim // 16, 4 * dim, "gelu", dtype, device, operations)
        self.final_layer_norm = operations.LayerNorm(dim, dtype=dtype, device=device)

    def get_input_embeddings(self):
        return self.token_embedding

    def forward(self, _tokens, attention_mask=None, embeds=None, num_tokens=None, intermediate_output=None,
                final_layer_norm_intermediate=True, dtype=torch.float32, embeds_info=()):  # fmt: skip
        places = torch.arange(embeds.shape[1], device=embeds.device)
        x = embeds + self.position_embedding(places, out_dtype=dtype)
        x, intermediate = self.encoder(x, intermediate_output=intermediate_output)
        x = self.final_layer_norm(x)
        if intermediate is not None and final_layer_norm_intermediate:
            intermediate = self.final_layer_norm(intermediate)
        # The end token's output stands for the sentence, as in CLIP.
        last = torch.as_tensor(num_tokens, device=x.device) - 1
        return x, intermediate, x.gather(1, last[:, None, None].expand(-1, 1, x.shape[2]))[:, 0]


class DemoClip(SDClipModel):
    def __init__(self, device="cpu", dtype=None, model_options={}):  # noqa: B006
        super().__init__(
            device=device,
            max_length=MAX_LENGTH,
            textmodel_json_config={"hidden_size": TEXT_DIM, "num_hidden_layers": TEXT_LAYERS},
            dtype=dtype,
            model_class=WordEncoder,
            special_tokens={"start": START, "end": END, "pad": PAD},
            model_options=model_options,
        )


class DemoTextEncoder(SD1ClipModel):
    def __init__(self, device="cpu", dtype=None, model_options={}):  # noqa: B006
        super().__init__(device=device, dtype=dtype, model_options=model_options, clip_name="demo", clip_model=DemoClip)


def weights_file(name: str) -> Path:
    """The file of a model, an adapter, the autoencoder or a classifier that comes with the pack."""
    return Path(__file__).parents[1] / "weights" / f"{name}.safetensors"


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, and its metadata.

    Raises:
        ValueError: no such file, or not a whole safetensors file.
    """
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"The demo model file {path.name} cannot be read ({error}). It should be a whole safetensors file; "
            "reinstall the pack to restore it."
        ) from error


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a demo checkpoint, checked.

    Raises:
        ValueError: no such file, not a whole safetensors file, or made for another vocabulary.
    """
    tensors, about = read_tensors(path)
    words = about.get("vocabulary", "").split()
    if words != list(VOCABULARY):
        raise ValueError(
            f"The demo model file {path.name} was made for a vocabulary of {len(words)} words, this version of the "
            f"pack has {len(VOCABULARY)}. Reinstall the pack so that both are of one version."
        )
    return tensors


def load_model(family: str, weights: dict[str, Tensor]) -> ModelPatcher:
    """MODEL: the diffusion network with the weights of a checkpoint."""
    model = diffusion_model(family, comfy.model_management.unet_offload_device())
    # With dynamic VRAM the host's layers are made of what they are given, in its type.
    weights = {name: weight.to(model.get_dtype()) for name, weight in weights.items()}
    model.load_model_weights(weights, "model.diffusion_model.")
    return ModelPatcher(
        model,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )


def load_clip(weights: dict[str, Tensor]) -> comfy.sd.CLIP:
    """CLIP: word tokenizer and text encoder with the weights of a checkpoint."""
    prefix = {"cond_stage_model.": ""}
    weights = comfy.utils.state_dict_prefix_replace(dict(weights), prefix, filter_keys=True)
    target = comfy.supported_models_base.ClipTarget(DemoTokenizer, DemoTextEncoder)
    return comfy.sd.CLIP(target, state_dict=weights, model_options={"dtype": torch.float32})


def load_vae(weights: dict[str, Tensor]) -> comfy.sd.VAE:
    """VAE: the host's, around the demo models' autoencoder."""
    # The host has no autoencoder that is small and free of norms over the image. Its simplest VAE lends the rest.
    vae = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)}, dtype=torch.float32)
    autoencoder = Autoencoder().eval()
    autoencoder.load_state_dict(weights)
    vae.first_stage_model = autoencoder
    offload = comfy.model_management.vae_offload_device()
    vae.patcher = ModelPatcher(autoencoder, load_device=vae.device, offload_device=offload)
    vae.downscale_ratio = vae.upscale_ratio = DOWNSCALE
    vae.latent_channels = CHANNELS
    return vae


def load_model_file(path: Path, name: str) -> ModelPatcher:
    """MODEL: one of `MODELS`, from its file."""
    model = load_model(family_of(name), read_checkpoint(path))
    model.cached_patcher_init = (load_model_file, (path, name))  # how the host makes copies for further GPUs
    return model


def load(name: str) -> tuple[ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE]:
    """MODEL, CLIP and VAE of a demo model, one of `MODELS`. Models of one family have one CLIP."""
    model = load_model_file(weights_file(name), name)
    clip = load_clip(read_checkpoint(weights_file(family_of(name))))
    return model, clip, load_vae(read_tensors(weights_file("autoencoder"))[0])
