"""A trained LoRA as a file that everybody can load, and LoRAs as what a training begins with.

Names: the host's path of a layer, as its own trainer writes them. Metadata: kohya's (`ss_`), ModelSpec 1.0.1
(`modelspec.`), and a description of ours (`guidekit`), all of them strings.

Relies on: LoRAAdapter, whose weights are (up, down, alpha, ...) (comfy/weight_adapter/lora.py:206).
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import comfy.model_sampling
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter import LoRAAdapter
from torch import Tensor, nn

from ..files.folders import LORAS, name_in_loras
from ..models.row_lora import is_linear
from ..network.model_kind import kinds_of
from ..run.noise_levels import is_flow
from ..votes.vote_set import VoteSet
from ..weights.read import read_tuned
from .adapters import Factors

# By kinds of models, kohya's names and ModelSpec's; of others, the kind's own.
_KOHYA = {"SD1.5": "sd_v1", "SD2": "sd_v2", "SDXL": "sdxl_base_v1-0", "SD3": "sd3", "Flux": "flux1"}
_SPEC = {
    "SD1.5": "stable-diffusion-v1",
    "SD2": "stable-diffusion-v2-512",
    "SDXL": "stable-diffusion-xl-v1-base",
    "SD3": "stable-diffusion-3",
    "SD3 medium": "stable-diffusion-3-medium",
    "SD3.5 medium": "stable-diffusion-3.5-medium",
    "SD3.5 large": "stable-diffusion-3.5-large",
    "Flux dev": "flux-1-dev",
    "Flux schnell": "flux-1-schnell",
    "Chroma": "chroma",
}
_NAMES = ("lora_up.weight", "lora_down.weight", "alpha")


def tensors_of(factors: Mapping[str, Factors]) -> dict[str, Tensor]:
    """alpha is the rank."""
    found: dict[str, Tensor] = {}
    for path, (up, down) in factors.items():
        alpha = torch.tensor(float(len(down)))
        found |= {f"{path}.{name}": t.contiguous() for name, t in zip(_NAMES, (up, down, alpha))}
    return found


def patches_of(factors: Mapping[str, Factors]) -> dict[str, LoRAAdapter]:
    """As the host's loader makes them of the file."""
    return {
        f"{path}.weight": LoRAAdapter(set(), (up, down, float(len(down)), None, None, None))
        for path, (up, down) in factors.items()
    }


def save_lora(name: str, factors: Mapping[str, Factors], about: dict, metadata: Mapping[str, str]) -> str:
    """In models/loras/guidekit; `about` is ours. Returns the name by which loaders of LoRAs know it. Raises ValueError
    where it cannot be written."""
    return name_in_loras(LORAS.save(name, tensors_of(factors), about, metadata))


def metadata_of(
    model: ModelPatcher, votes: VoteSet, name: str, title: str, rank: int, numbers: Mapping[str, object]
) -> dict[str, str]:
    """`title`: what was trained, in words; `numbers`: what kohya's trainer calls `ss_...`, without that."""
    kinds, sampling = kinds_of(model), model.get_model_object("model_sampling")
    factor = getattr(model.get_model_object("latent_format"), "spacial_downscale_ratio", 8)
    height, width = (factor * n for n in _largest(votes)[-2:])
    v = isinstance(sampling, comfy.model_sampling.V_PREDICTION)
    spec = _first(_SPEC, kinds)
    if spec == _SPEC["SD2"] and v:
        spec = "stable-diffusion-v2-768-v"
    found = {
        "ss_base_model_version": _first(_KOHYA, kinds),
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": float(rank),
        "ss_v2": "SD2" in kinds,
        "ss_v_parameterization": v,
        "ss_output_name": name,
        "ss_num_train_images": len(votes.rows),
        "ss_resolution": f"({width}, {height})",
        "ss_training_comment": title,
        **{f"ss_{key}": value for key, value in numbers.items()},
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{spec}/lora",
        "modelspec.implementation": "https://github.com/guidekit/guidekit",
        "modelspec.title": name,
        "modelspec.description": title,
        "modelspec.resolution": f"{width}x{height}",
        "modelspec.date": time.strftime("%Y-%m-%dT%H:%M:%S"),
    }
    if not is_flow(sampling):
        found["modelspec.prediction_type"] = "v" if v else "epsilon"
    return {key: str(value) for key, value in found.items()}


def _first(names: Mapping[str, str], kinds: Sequence[str]) -> str:
    return next((names[kind] for kind in kinds if kind in names), kinds[0])


def _largest(votes: VoteSet) -> tuple[int, ...]:
    return max((tuple(row.latent.shape) for row in votes.rows), key=lambda shape: shape[-1] * shape[-2])


def read_start(model: ModelPatcher, path: Path) -> dict[str, Factors]:
    """A LoRA that a training goes on from, by the paths of its layers, its share alpha / rank in the first factor.

    Raises:
        ValueError: it is something else than products on linear layers.
    """
    found = {}
    for target, patch in read_tuned(model, path, 0).patches.items():
        factors = _factors(model.model, target, patch)
        if factors is None:
            raise ValueError(
                f"{path.name} has {target if isinstance(target, str) else target[0]}, which is no plain product on a "
                "linear layer. A training goes on from a LoRA of this pack, or another one of linear layers."
            )
        found[target.removesuffix(".weight")] = factors
    return found


def _factors(base: nn.Module, target: object, patch: object) -> Factors | None:
    if not isinstance(target, str) or not target.endswith(".weight") or not isinstance(patch, LoRAAdapter):
        return None
    up, down, alpha, *others = patch.weights
    if any(other is not None for other in others) or not is_linear(base.get_submodule(target.removesuffix(".weight"))):
        return None
    share = 1.0 if alpha is None else alpha / len(down)
    return share * up.float().flatten(1), down.float().flatten(1)
