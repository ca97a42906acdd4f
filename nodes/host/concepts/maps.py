"""The linear maps of a network that are given texts: what TIME and UCE edit.

In UNets those to keys and values of cross-attention. UCE's code for Flux edits the first layers that the tokens and the
pooled text go through, and the other transformers are read in the same way.

Relies on: `attn2` of the host's UNets; `txt_in`, `vector_in`, `context_embedder`, `y_embedder`, `cap_embedder` of its
transformers, and the norm before the map where there is one (comfy/ldm/qwen_image/model.py:503, lumina/model.py:525,
flux/model.py:180); pooled texts at the beginning of what SDXL's `label_emb` is given (comfy/model_base.py:508).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import comfy.model_base
import torch
from comfy.ldm.chroma.model import Chroma
from comfy.ldm.flux.model import Flux
from comfy.ldm.lumina.model import NextDiT
from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ..network.families import network_of
from ..weights.module_weights import patched_weight

PUBLISHED, KEYS, VALUES, POOLED = "as published", "keys only", "values only", "and the pooled text"
MAPS = (PUBLISHED, KEYS, VALUES, POOLED)
_PREFIX = "diffusion_model."


@dataclass(frozen=True)
class Map:
    """`path` of a linear layer in the model; `pooled`: whether it is given the pooled text, else tokens; `norm`: the
    path of what these go through before it."""

    path: str
    pooled: bool = False
    norm: str | None = None

    @property
    def key(self) -> str:
        return f"{self.path}.weight"

    def weight(self, model: ModelPatcher) -> Tensor:
        """[out, in], in float32, with the LoRAs that are on the model."""
        return patched_weight(model, self.key)

    def given(self, model: ModelPatcher, texts: Tensor) -> Tensor:
        """What the map is given for `texts` [N, C], [N, in].

        Raises:
            ValueError: texts of another width than the network's.
        """
        layer = model.model.get_submodule(self.path)
        wide = self.pooled and texts.shape[1] < layer.in_features and isinstance(model.model, comfy.model_base.SDXL)
        if texts.shape[1] != layer.in_features and not wide:
            what = "pooled texts" if self.pooled else "tokens"
            raise ValueError(
                f"The CLIP gives {what} of {texts.shape[1]} channels, and {type(model.model).__name__} takes "
                f"{layer.in_features}. Connect the CLIP of this model."
            )
        if self.norm is not None:
            norm = model.model.get_submodule(self.norm)
            weight = patched_weight(model, f"{self.norm}.weight")
            texts = torch.nn.functional.rms_norm(texts.float(), texts.shape[1:], weight, norm.eps)
        # Behind SDXL's pooled text come the sizes of the image, of which no text says anything.
        return torch.nn.functional.pad(texts, (0, layer.in_features - texts.shape[1]))


def maps_of(model: ModelPatcher, which: str) -> list[Map]:
    """Raises ValueError for a network whose texts cannot be reached."""
    network = network_of(model)
    for kind, maps in _MAPS.items():
        if isinstance(network, kind):
            found = [*maps(network, model, which)]
            if found:
                return found
    raise ValueError(
        f"Concept Edit changes how a network reads texts, and {type(network).__name__} reads none in a way that it "
        "knows. It works on UNets, SD3, Flux, Chroma, Qwen-Image, Lumina2 and Z-Image."
    )


def is_unet(model: ModelPatcher) -> bool:
    return isinstance(network_of(model), UNetModel)


def takes_pooled(model: ModelPatcher) -> bool:
    """Whether a UNet is given the pooled text, which the papers leave alone."""
    network = network_of(model)
    return is_unet(model) and isinstance(getattr(network, "label_emb", None), nn.Sequential)


def _unet(network: UNetModel, model: ModelPatcher, which: str) -> Iterator[Map]:
    parts = {KEYS: ("to_k",), VALUES: ("to_v",)}.get(which, ("to_k", "to_v"))
    for name, module in network.named_modules():
        if name.endswith(tuple(f".attn2.{part}" for part in parts)) and hasattr(module, "in_features"):
            yield Map(_PREFIX + name)
    if which == POOLED and takes_pooled(model):
        yield Map(f"{_PREFIX}label_emb.0.0", pooled=True)


def _flux(network: nn.Module, model: ModelPatcher, which: str) -> Iterator[Map]:
    norm = f"{_PREFIX}txt_norm" if getattr(network, "txt_norm", None) is not None else None
    yield Map(f"{_PREFIX}txt_in", norm=norm)
    if getattr(network, "vector_in", None) is not None:
        yield Map(f"{_PREFIX}vector_in.in_layer", pooled=True)


def _sd3(network: MMDiT, model: ModelPatcher, which: str) -> Iterator[Map]:
    if network.context_processor is None and hasattr(network.context_embedder, "in_features"):
        yield Map(f"{_PREFIX}context_embedder")
        if network.y_embedder is not None:
            yield Map(f"{_PREFIX}y_embedder.mlp.0", pooled=True)


def _lumina(network: NextDiT, model: ModelPatcher, which: str) -> Iterator[Map]:
    yield Map(f"{_PREFIX}cap_embedder.1", norm=f"{_PREFIX}cap_embedder.0")


_MAPS = {
    UNetModel: _unet,
    Chroma: _flux,
    Flux: _flux,
    QwenImageTransformer2DModel: _flux,
    MMDiT: _sd3,
    NextDiT: _lumina,
}
