"""A toy denoiser of any rank and parameterisation inside the host's own model classes: no layers, exact arithmetic."""

import comfy.latent_formats
import comfy.model_base
import comfy.model_sampling
import comfy.sample
import comfy.supported_models_base
import torch
from comfy.model_base import ModelType
from comfy.model_patcher import ModelPatcher

SHAPES = {3: (4, 24), 4: (4, 6, 8), 5: (4, 2, 4, 6)}  # of one latent, by rank with the batch
TYPES = {
    "eps": ModelType.EPS,
    "v": ModelType.V_PREDICTION,
    "edm": ModelType.EDM,
    "flow": ModelType.FLOW,
}


class Network(torch.nn.Module):
    """A smooth function of the latent and the mean of the prompt; samples do not see each other."""

    dtype = torch.float32

    def forward(self, x, timestep, context=None, control=None, transformer_options=None, **kwargs):
        prompt = context.mean((1, 2)).reshape(-1, *[1] * (x.ndim - 1))
        place = torch.linspace(-1, 1, x[0].numel(), device=x.device).reshape(x.shape[1:])
        return 0.4 * x + torch.tanh(prompt * place + 0.2 * x.roll(1, -1))


class Elementwise(torch.nn.Module):
    """A denoiser without neighbourhoods, so that it cannot mix streams."""

    dtype = torch.float32

    def __init__(self, strength: float = 1.0):
        super().__init__()
        self.strength = strength

    def forward(self, x, timestep, context=None, control=None, transformer_options=None, **kwargs):
        prompt = context.mean((1, 2)).reshape(-1, *[1] * (x.ndim - 1))
        return 0.4 * x + self.strength * torch.tanh(prompt * x)


class Fixed(torch.nn.Module):
    """Denoises to its prompt's number everywhere, whatever x and sigma; for `model`."""

    dtype = torch.float32

    def __init__(self, model: ModelPatcher):
        super().__init__()
        sampling = model.get_model_object("model_sampling")
        self.sigmas = None if isinstance(sampling, comfy.model_sampling.CONST) else sampling.sigmas

    def forward(self, x, timestep, context=None, control=None, transformer_options=None, **kwargs):
        shape = (-1, *[1] * (x.ndim - 1))
        if self.sigmas is None:  # flow: (x - D) / t
            sigma = (timestep / 1000).reshape(shape)
        else:  # eps, where the network is told an index instead of sigma and x is scaled
            low, high = timestep.floor().long(), timestep.ceil().long()
            sigma = torch.lerp(self.sigmas[low].log(), self.sigmas[high].log(), timestep - low).exp().reshape(shape)
            x = x * (1 + sigma**2).sqrt()
        return (x - context.mean((1, 2)).reshape(shape)) / sigma


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


def fixed(rank: int = 4, parameterisation: str = "eps") -> ModelPatcher:
    """A model of `Fixed`, eps or flow."""
    patcher = model(rank, parameterisation)
    patcher.model.diffusion_model = Fixed(patcher)
    return patcher


def sample(patcher, rank=4, *, cfg=4.0, steps=4, sampler="euler", batch=1, positive=2.0, negative=-1.5, **options):
    start = noise(rank, batch)
    prompts = conditioning(positive), conditioning(negative)
    zeros = torch.zeros_like(start)
    settings = (steps, cfg, sampler, "simple", *prompts, zeros)
    return comfy.sample.sample(patcher, start, *settings, seed=3, disable_pbar=True, **options)
