"""What it costs to look at a step's image: decoding by a VAE, a TAESD, preview colours, and a classifier, beside the
step. Networks of the host's classes in their real shapes, with arbitrary weights; 256 x 256 pixels."""

from functools import partial

import comfy.latent_formats
import comfy.ldm.models.autoencoder
import comfy.ldm.modules.diffusionmodules.openaimodel
import comfy.ops
import comfy.taesd.taesd
import torch
from torch import nn

from ..nodes.host.classifiers.decode import by_colour
from ..samplers.classifiers.resnet import load_resnet
from ._table import print_row
from ._timing import medians

LATENT = (1, 4, 32, 32)
_UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": (1, 2, 4, 4),
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "context_dim": 768,
    "num_heads": 8,
    "num_head_channels": -1,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "legacy": False,
}
_VAE = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}


def _small_weights(network: nn.Module) -> nn.Module:
    """The host's layers leave them as found in memory."""
    for parameter in network.parameters():
        parameter.data = torch.full_like(parameter, 0.01)
    return network.eval().requires_grad_(False)


def table() -> None:
    import torchvision

    unet = comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel(
        **_UNET, dtype=torch.float32, operations=comfy.ops.disable_weight_init
    )
    unet = _small_weights(unet)
    vae = _small_weights(comfy.ldm.models.autoencoder.AutoencoderKL(ddconfig=_VAE, embed_dim=4))
    taesd = _small_weights(comfy.taesd.taesd.Decoder())
    resnet = load_resnet(torchvision.models.resnet50().state_dict())
    latent, text = torch.randn(LATENT), torch.randn(2, 77, 768)
    x, t = torch.randn(2, *LATENT[1:]), torch.full((2,), 500.0)
    times = medians(
        {
            "a step: UNet of SD1.5, positive and negative": partial(unet, x, t, text),
            "VAE of SD1.5": partial(vae.decode, latent),
            "TAESD": partial(taesd, latent),
            "preview colours": partial(by_colour, latent, comfy.latent_formats.SD15()),
            "ResNet-50": partial(resnet, torch.rand(1, 3, 224, 224)),
        }
    )
    step = next(iter(times.values()))
    print("\n| what | seconds | share of a step |\n|---|---|---|")
    for name, seconds in times.items():
        print_row(f"| {name} | {seconds:.4f} | {100 * seconds / step:.1f} % |")
