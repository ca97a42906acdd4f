"""Networks that are loaded together with a model.

Relies on: `models()` of patches, whatever kind they are of (comfy/model_patcher.py:785, called by load_models_gpu).
The `additional_models` of a patcher are loaded too, but where the host uses several GPUs each of these wants a copy of
them, which not every loader can make.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from comfy.model_patcher import ModelPatcher

_KIND = "guidekit_loaded_beside"  # no network asks for such patches


@dataclass(frozen=True, eq=False)
class _Beside:
    patchers: tuple[ModelPatcher, ...]

    def models(self) -> list[ModelPatcher]:
        return [*self.patchers, *(model for patcher in self.patchers for model in patcher.model_patches_models())]


def load_beside(model: ModelPatcher, patchers: Iterable[ModelPatcher]) -> None:
    """Loads `patchers` whenever the (cloned) model is loaded."""
    model.set_model_patch(_Beside(tuple(patchers)), _KIND)


def loaded_beside(model: ModelPatcher) -> list[ModelPatcher]:
    """Those of a MODEL."""
    patches = model.model_options["transformer_options"].get("patches", {}).get(_KIND, ())
    return [patcher for patch in patches for patcher in patch.patchers]
