"""Zero-shot classification by CLIP (Radford et al., ICML 2021, arXiv 2103.00020): cosines of an image with texts.

Relies on: the host's text encoders being SDClipModels in attributes `clip_l`, `clip_g`, `clip_h`, each with a
`transformer` that ends in `text_projection` (comfy/clip_model.py:198), and reading tokens under `l`, `g`, `h`
(comfy/sd1_clip.py, sdxl_clip.py); CLIPVision.encode_image giving `image_embeds` (comfy/clip_vision.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .labels import Label, Logits

_SCALE = 100.0  # factor of the cosines, as CLIP was trained
_READERS = ("l", "g", "h")


@dataclass(frozen=True, eq=False)
class ClipClassifier:
    """A classifier from the host's CLIP_VISION and CLIP, in which every text is a class."""

    vision: Any
    clip: Any

    @property
    def patchers(self) -> tuple[ModelPatcher, ...]:
        return (self.vision.patcher,)

    def among(self, labels: Sequence[Label]) -> Logits:
        texts = [_features(self.clip, label.text, self._width()) for label in labels]
        return _Near(self.vision, torch.nn.functional.normalize(torch.cat(texts), dim=1))

    def _width(self) -> int:
        projection = getattr(self.vision.model, "visual_projection", None)
        if projection is None or not hasattr(projection, "out_features"):
            raise ValueError(
                "This CLIP vision model has no projection into a space shared with text. Use one of CLIP (ViT-L, "
                "ViT-H, ViT-bigG)."
            )
        return projection.out_features


@dataclass(frozen=True)
class _Near:
    vision: Any
    texts: Tensor  # [labels, width], normalised

    def __call__(self, images: Tensor) -> Tensor:
        seen = self.vision.encode_image(images.movedim(1, -1))["image_embeds"].float()
        return _SCALE * torch.nn.functional.normalize(seen, dim=1) @ self.texts.to(seen).T


def _features(clip, text: str, width: int) -> Tensor:
    """The embedding of a text, [1, width], in the space shared with images.

    Raises:
        ValueError: no text encoder in `clip` projects to this width.
    """
    model, tokens = clip.cond_stage_model, clip.tokenize(text)
    for name in _READERS:
        reader = getattr(model, f"clip_{name}", None)
        projection = getattr(getattr(reader, "transformer", None), "text_projection", None)
        if reader is None or projection is None or name not in tokens or projection.out_features != width:
            continue
        clip.load_model()
        model.reset_clip_options()
        reader.set_clip_options({"projected_pooled": True, "execution_device": clip.patcher.load_device})
        found = reader.encode_token_weights(tokens[name])[1]  # the host resets the options before it encodes
        if found is not None and found.isfinite().all() and found.norm() > 0:
            return found.float().cpu()
    raise ValueError(
        f"None of the text encoders in this CLIP projects to the {width} dimensions of the CLIP vision model. Use both "
        "parts of one CLIP model: ViT-L with clip_l (768), from a file that has its text_projection; ViT-bigG with "
        "clip_g (1280). Encoders such as T5 share no space with images."
    )
