"""A toy denoiser of any rank and parameterisation inside the host's own model classes: no layers, exact arithmetic."""

import comfy.latent_formats
import comfy.model_base
import comfy.sample
import comfy.supported_models_base
import torch
from comfy.model_base import ModelType
from comfy.model_patcher import ModelPatcher

SHAPES = {3: (4, 24), 4: (4, 6, 8), 5: (4, 2, 4, 6)}  # of one latent, by rank with the batch
TYPES = {"eps": ModelType.EPS, "v": ModelType.V_PREDICTION, "flow": ModelType.FLOW}


class Network(torch.nn.Module):
    """A smooth function of the latent and the mean of the prompt; samples do not see each other."""

    dtype = torch.float32

    def forward(self, x, timestep, context=None, control=None, transformer_options=None, **kwargs):
        prompt = context.mean((1, 2)).reshape(-1, *[1] * (x.ndim - 1))
        place = torch.linspace(-1, 1, x[0].numel(), device=x.device).reshape(x.shape[1:])
        return 0.4 * x + torch.tanh(prompt * place + 0.2 * x.roll(1, -1))


class Elementwise(torch.nn.Module):
    """A denoiser that sees no neighbours, so that streams cannot mix in it."""

    dtype = torch.float32

    def __init__(self, strength: float = 1.0):
        super().__init__()
        self.strength = strength

    def forward(self, x, timestep, context=None, control=None, transformer_options=None, **kwargs):
        prompt = context.mean((1, 2)).reshape(-1, *[1] * (x.ndim - 1))
        return 0.4 * x + self.strength * torch.tanh(prompt * x)


def model(rank: int = 4, parameterisation: str = "eps") -> ModelPatcher:
    class Config(comfy.supported_models_base.BASE):
        class latent_format(comfy.latent_formats.LatentFormat):  # noqa: N801
            latent_channels = 4
            latent_dimensions = rank - 2

        memory_usage_factor = 0.1

    config = Config({"disable_unet_model_creation": True})
    base = comfy.model_base.BaseModel(config, TYPES[parameterisation])
    base.diffusion_model = Network()
    cpu = torch.device("cpu")
    return ModelPatcher(base, load_device=cpu, offload_device=cpu)


def conditioning(value: float) -> list:
    return [[torch.full((1, 2, 3), value), {}]]


def noise(rank: int, batch: int = 1) -> torch.Tensor:
    seeds = (torch.Generator().manual_seed(40 + i) for i in range(batch))
    return torch.cat([torch.randn((1, *SHAPES[rank]), generator=g) for g in seeds])


def sample(patcher, rank=4, *, cfg=4.0, steps=4, sampler="euler", batch=1, positive=2.0, negative=-1.5, **options):
    start = noise(rank, batch)
    prompts = conditioning(positive), conditioning(negative)
    zeros = torch.zeros_like(start)
    settings = (steps, cfg, sampler, "simple", *prompts, zeros)
    return comfy.sample.sample(patcher, start, *settings, seed=3, disable_pbar=True, **options)
