"""The description in a file of tuned weights, compared with the model that it is applied to."""

import comfy.model_sampling
from comfy.model_patcher import ModelPatcher

from ..files.safetensors_header import Header

_WIDTHS = {768: "SD1", 1024: "SD2", 2048: "SDXL", 1280: "SDXL's refiner"}  # by the width of text in cross-attention


def name_of(model: ModelPatcher) -> str:
    """The class of a model, with its kind if it is a known UNet, for messages."""
    width = model.model.model_config.unet_config.get("context_dim")
    kind = _WIDTHS.get(width) if isinstance(width, int) else None
    return type(model.model).__name__ + (f" ({kind})" if kind else "")


def other_kind(header: Header) -> str:
    """The kinds of models that a file was made for, from its shapes and metadata, as the end of a sentence; "" if
    unknown."""
    said = [header.metadata.get(name) for name in ("modelspec.architecture", "ss_base_model_version")]
    widths = {
        _WIDTHS[entry.shape[1]]
        for name, entry in header.tensors.items()
        if "attn2" in name and "to_k" in name and len(entry.shape) == 2 and entry.shape[1] in _WIDTHS
    }
    kinds = [*sorted(widths), *(text[:100] for text in said if text)]
    return f"; it is for {' or '.join(dict.fromkeys(kinds))}" if kinds else ""


def about_itself(model: ModelPatcher, header: Header) -> list[str]:
    """Sentences about the file's metadata: a wrong prediction type, title, model, licence."""
    metadata, found = header.metadata, []
    says = metadata.get("modelspec.prediction_type")
    if says is None and metadata.get("ss_v_parameterization") is not None:
        says = "v" if metadata["ss_v_parameterization"] == "True" else "epsilon"
    predicts = _predicts(model)
    if says in ("epsilon", "v") and predicts is not None and says != predicts:
        found.append(f"Warning: it was trained to predict {says}, and the model predicts {predicts}: images may break.")
    for name, title in (
        ("modelspec.title", "Title"),
        ("modelspec.architecture", "Made for"),
        ("ss_base_model_version", "Made for"),
        ("modelspec.license", "Licence"),
    ):
        if text := metadata.get(name):
            found.append(f"{title}: {text[:200]}.")
    if not metadata.get("modelspec.license"):
        found.append("Licence: the file declares none.")
    return found


def _predicts(model: ModelPatcher) -> str | None:
    sampling = model.get_model_object("model_sampling")
    if isinstance(sampling, (comfy.model_sampling.EDM, comfy.model_sampling.X0)):
        return None
    if isinstance(sampling, comfy.model_sampling.V_PREDICTION):
        return "v"
    return "epsilon" if isinstance(sampling, comfy.model_sampling.EPS) else None
