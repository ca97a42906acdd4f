"""Names of adapter weights, whatever wrote them, in the spelling that ComfyUI loads.

A name is the path of a module and a part: `unet.down_blocks.0.attentions.0...to_q` and `lora_A.weight`, say. ComfyUI
has a list of paths for each model, and knows most spellings of parts; what it does not know it leaves out, with a line
in the log for each name. Those are, on UNets: the paths of diffusers (`unet.`) with the parts `lora.up`, `lora_A` or
`lora_A.default`, of PEFT (`base_model.model.`), and magnitudes of DoRA as PEFT calls them. Here a module is looked up
under each of the spellings in turn.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

DOWN, UP, MID, ALPHA, SCALE = "lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha", "dora_scale"
# Endings of names, the longer first, and the part that each is.
_PARTS = {
    ".lora_magnitude_vector.default.weight": SCALE,
    ".lora_magnitude_vector.weight": SCALE,
    ".lora_magnitude_vector.default": SCALE,
    ".lora_magnitude_vector": SCALE,
    ".lora_linear_layer.down.weight": DOWN,
    ".lora_linear_layer.up.weight": UP,
    ".lora_A.default.weight": DOWN,
    ".lora_B.default.weight": UP,
    ".lora_A.weight": DOWN,
    ".lora_B.weight": UP,
    ".lora.down.weight": DOWN,
    ".lora.up.weight": UP,
    "_lora.down.weight": DOWN,
    "_lora.up.weight": UP,
    ".lora_A.default": DOWN,
    ".lora_B.default": UP,
    ".lora_A": DOWN,
    ".lora_B": UP,
    ".lora_down.weight": DOWN,
    ".lora_up.weight": UP,
    ".lora_mid.weight": MID,
    ".dora_scale": SCALE,
    ".alpha": ALPHA,
}
# Of adapters of other kinds and of differences, which have one spelling.
_OTHER = re.compile(
    r"\.(hada_w[12](_[ab])?|hada_t[12]|lokr_w[12](_[ab])?|lokr_t2|oft_blocks|oft_diag|rescale|a[12]\.weight|b[12]\.weight"
    r"|diff|diff_b|set_weight|w_norm|b_norm|reshape_weight)$"
)
_PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "unet.", "transformer.")


@dataclass
class Renamed:
    """`names`: for each name as ComfyUI loads it, the one in the file; `unknown`: those that belong to no module of the
    model, or are no adapter's; `modules`: paths of the model's modules that have something."""

    names: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    modules: set[str] = field(default_factory=set)


def split(name: str) -> tuple[str, str] | None:
    """(module, part as ComfyUI spells it); None for what is no adapter's."""
    for ending, part in _PARTS.items():
        if name.endswith(ending):
            return name.removesuffix(ending), part
    if match := _OTHER.search(name):
        return name[: match.start()], match[1]
    return None


def spellings(module: str) -> Iterable[str]:
    """Under which a model's list may have a module, as it is first."""
    yield module
    bare = module
    while prefix := next((p for p in _PREFIXES if bare.startswith(p)), None):
        bare = bare.removeprefix(prefix)
        yield bare
    flat = bare.replace(".", "_")
    yield f"lora_unet_{flat}"
    yield f"diffusion_model.{bare}"
    yield f"transformer.{bare}"
    yield f"lora_transformer_{flat}"
    yield f"lycoris_{flat}"
    # diffusers before 0.22 put the projections of attention into a processor, and calls the last one to_out.
    if "processor." in bare:
        yield from (f"lora_unet_{flat.replace('processor_', '')}{end}" for end in ("", "_0"))


def rename(names: Collection[str], known: Collection[str]) -> Renamed:
    """`known`: the paths of the model's modules, in all spellings that ComfyUI has for them."""
    found = Renamed()
    for name in names:
        module, part = split(name) or (None, None)
        path = next((s for s in spellings(module) if s in known), None) if module is not None else None
        if path is None or f"{path}.{part}" in found.names:
            found.unknown.append(name)
        else:
            found.names[f"{path}.{part}"] = name
            found.modules.add(path)
    return found
