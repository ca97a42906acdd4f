"""Names of adapter weights, from any program.

A name is the path of a module and a part, such as `unet.down_blocks.0.attentions.0...to_q` and `lora_A.weight`.
Programs differ in both. A path begins with the program's name for the network, and has dots or underscores between its
words; without the prefix and this difference, paths of all programs agree. Parts have a few spellings each; PEFT puts
the user's name for the adapter in the middle of them.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

DOWN, UP, MID, ALPHA, SCALE = "lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha", "dora_scale"
BIAS = "lora_up.bias"  # PEFT's, of the second factor
# Endings of names, the longer first, with the part that they mean.
_PARTS = {
    ".lora_linear_layer.down.weight": DOWN,
    ".lora_linear_layer.up.weight": UP,
    ".lora_down.weight": DOWN,
    ".lora_up.weight": UP,
    ".lora_mid.weight": MID,
    ".lora.down.weight": DOWN,
    ".lora.up.weight": UP,
    "_lora.down.weight": DOWN,
    "_lora.up.weight": UP,
    ".dora_scale": SCALE,
    ".alpha": ALPHA,
}
_OF_PEFT = re.compile(
    r"\.(lora_A|lora_B|lora_magnitude_vector|hada_w[12](?:_[ab])?|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2)"
    r"(?:\.(?!(?:weight|bias)$)([^.]+))?(?:\.(weight|bias))?$"
)
_PARTS_OF_PEFT = {"lora_A": DOWN, "lora_B": UP, "lora_magnitude_vector": SCALE}
# Parts of other kinds of adapters and of differences, which have one spelling.
_OTHER = re.compile(
    r"\.(oft_blocks|oft_diag|rescale|a[12]\.weight|b[12]\.weight|diff|diff_b|set_weight|w_norm|b_norm|reshape_weight)$"
)
_PREFIX = re.compile(
    r"base_model\.model\.|model\.diffusion_model\.|diffusion_model\.|unet\.|transformer\.|pipe\.dit\."
    r"|lora_(prior_)?unet_|lora_transformer_|lycoris_|oft_unet_"
)
_TEXT = re.compile(r"lora_te\d?_|text_encoder|.*text_model[._]encoder[._]")


@dataclass(frozen=True)
class Name:
    """A name in a file. `part`: in ComfyUI's spelling; `adapter`: PEFT's name of the adapter, "" if there is none."""

    module: str
    part: str
    adapter: str = ""


@dataclass
class Renamed:
    """The names of a file, assigned to a model. `parts`: {path in ComfyUI's list: {part: name in the file}}; `nowhere`:
    modules that the model does not have; `repeated`: modules with a part that is named more than once, of which the
    first is used; `unknown`: names that are not of an adapter."""

    parts: dict[str, dict[str, str]] = field(default_factory=dict)
    nowhere: dict[str, None] = field(default_factory=dict)
    repeated: dict[str, None] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)

    @property
    def names(self) -> dict[str, str]:
        """{name as ComfyUI loads it: name in the file}"""
        return {f"{path}.{part}": name for path, parts in self.parts.items() for part, name in parts.items()}


def split(name: str) -> Name | None:
    """A name divided into path and part; None if it is not of an adapter."""
    for ending, part in _PARTS.items():
        if name.endswith(ending):
            return Name(name.removesuffix(ending), part)
    if match := _OF_PEFT.search(name):
        part, adapter, kind = match.groups()
        if kind == "bias" and part != "lora_B" or kind == "weight" and part not in _PARTS_OF_PEFT:
            return None
        part = BIAS if kind == "bias" else _PARTS_OF_PEFT.get(part, part)
        return Name(name[: match.start()], part, adapter or "")
    if match := _OTHER.search(name):
        return Name(name[: match.start()], match[1])
    return None


def bare(path: str) -> str:
    """A path without prefixes, and with underscores instead of dots."""
    while match := _PREFIX.match(path):
        path = path[match.end() :]
    # diffusers before 0.22 had the projections of attention in a processor.
    return path.replace(".", "_").replace("_processor_", "_").strip("_")


def is_of_text(module: str) -> bool:
    """Whether a module of a file belongs to a text encoder."""
    return _TEXT.match(module) is not None


def rename(names: Collection[str], known: Mapping[str, Any]) -> Renamed:
    """Assigns the names of a file to the modules of a model. `known`: {path: module}, with all spellings of the paths
    in ComfyUI's list."""
    found, by_bare = Renamed(), _by_bare(known)
    for name in names:
        split_name = split(name)
        if split_name is None:
            found.unknown.append(name)
            continue
        module = split_name.module
        path = module if module in known else by_bare.get(bare(module))
        if path is None and module.endswith("to_out"):  # the old processors have no index
            path = by_bare.get(f"{bare(module)}_0")
        if path is None:
            found.nowhere[module] = None
        elif split_name.part in found.parts.get(path, ()):
            found.repeated[module] = None
        else:
            found.parts.setdefault(path, {})[split_name.part] = name
    return found


def _by_bare(known: Mapping[str, Any]) -> dict[str, str]:
    """{bare path: path}, without bare paths that would stand for two modules."""
    found: dict[str, str] = {}
    twice: set[str] = set()
    for path, module in known.items():
        first = found.setdefault(bare(path), path)
        if known[first] != module:
            twice.add(bare(path))
    return {path: first for path, first in found.items() if path not in twice}
