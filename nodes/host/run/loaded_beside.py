"""Networks that are loaded together with a model.

Relies on: `models()` of patches of any kind (comfy/model_patcher.py:785, called by load_models_gpu). The host would
load the `additional_models` of a patcher too, but on several GPUs it copies them for each, which not every loader can
do.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from comfy.model_patcher import ModelPatcher

_KIND = "guidekit_loaded_beside"  # a kind of patch that no network uses


@dataclass(frozen=True, eq=False)
class _Beside:
    patchers: tuple[ModelPatcher, ...]

    def models(self) -> list[ModelPatcher]:
        return [*self.patchers, *(model for patcher in self.patchers for model in patcher.model_patches_models())]


def load_beside(model: ModelPatcher, patchers: Iterable[ModelPatcher]) -> None:
    """Loads `patchers` whenever the (cloned) model is loaded."""
    model.set_model_patch(_Beside(tuple(patchers)), _KIND)


def loaded_beside(model: ModelPatcher) -> list[ModelPatcher]:
    """The patchers that are loaded together with a MODEL."""
    patches = model.model_options["transformer_options"].get("patches", {}).get(_KIND, ())
    return [patcher for patch in patches for patcher in patch.patchers]
