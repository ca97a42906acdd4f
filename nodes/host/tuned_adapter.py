"""A file of LoRA and its relatives as patches of a model.

Relies on: load_lora (comfy/lora.py:42) for parts by the names of `samplers/alignment/lora_keys.py`.
"""

from collections import Counter
from pathlib import Path

import comfy.lora
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter import WeightAdapterBase
from torch import Tensor

from ...samplers.alignment import layouts, lora_keys, shapes
from ...samplers.alignment.peft import PeftConfig, read_config
from ...samplers.safetensors_header import Header
from .corrected import corrected
from .tensors import FLOATS, read_tensors
from .tuned_about import about_itself, name_of, other_kind

_PEFT_FILE = "adapter_model.safetensors"  # PEFT writes its configuration beside a file of this name
_PEFT_CONFIG = "adapter_config.json"
_LARGEST_CONFIG = 2**20  # bytes
_SHOWN = 3  # examples in a sentence


class Adapter:
    """One file of LoRA and its relatives."""

    def __init__(
        self, model: ModelPatcher, path: Path, header: Header, known: dict, renamed: lora_keys.Renamed
    ) -> None:
        self.model, self.path, self.header, self.known, self.renamed = model, path, header, known, renamed
        self.parts: dict[str, dict[str, str]] = {}  # names in the file by module and part
        for new, old in renamed.names.items():
            module, part = lora_keys.split(new)
            self.parts.setdefault(module, {})[part] = old
        self.left_out: dict[str, list[str]] = {}  # modules as the file names them, by the reason

    def read(self) -> tuple[dict, list[str]]:
        fitting = self._fitting()
        if not fitting:
            raise ValueError(
                f"{self.path.name} does not fit {name_of(self.model)}{other_kind(self.header)}: of its "
                f"{len(self.parts)} modules none can be used. {self._reasons()[0]}."
            )
        tensors = self._tensors(fitting)
        plain = {name: tensor for name, tensor in tensors.items() if not name.endswith(".dora_scale")}
        patches = comfy.lora.load_lora(plain, {module: self.known[module] for module in fitting}, log_missing=False)
        for module in fitting:
            key = self.known[module]
            if isinstance(patches.get(key), WeightAdapterBase):
                patches[key] = corrected(patches[key], tensors.get(f"{module}.dora_scale"))
        return patches, self._report(fitting, tensors)

    def _shape_of(self, name: str) -> tuple[int, ...]:
        return self.header.tensors[name].shape

    def _fitting(self) -> list[str]:
        """The modules whose parts make a change of the model's weights; the others are counted."""
        found, taken = [], set()
        for module, parts in self.parts.items():
            target = self.known[module]
            key, place = (target, None) if isinstance(target, str) else target[:2]
            shape = list(comfy.utils.get_attr(self.model.model, key).shape)  # of quantised weights, what they stand for
            if place is not None:
                shape[place[0]] = place[2]
            wrong = shapes.problem({part: self._shape_of(name) for part, name in parts.items()}, tuple(shape))
            kinds = {self.header.tensors[name].dtype for name in parts.values()} - {*FLOATS}
            if wrong is None and kinds - {"I64", "I32"}:
                wrong = f"is in {' and '.join(sorted(kinds))}"
            if wrong is None and target in taken:
                wrong = "is for a weight that another one is for as well"
            if wrong is None:
                found.append(module)
                taken.add(target)
            else:
                self.left_out.setdefault(wrong, []).append(self._trained(module)[:200])
        return found

    def _trained(self, module: str) -> str:
        """A module as the file names it."""
        return lora_keys.split(next(iter(self.parts[module].values())))[0]

    def _reasons(self) -> list[str]:
        """Why modules are left out, the most frequent reason first."""
        found = sorted(self.left_out.items(), key=lambda item: -len(item[1]))
        return [f"{names[0]} {why}" + (f", and {len(names) - 1} like it" * (len(names) > 1)) for why, names in found]

    def _tensors(self, modules: list[str]) -> dict[str, Tensor]:
        """By the names that the host loads; finite, and not all without effect."""
        wanted = {f"{m}.{part}": name for m in modules for part, name in self.parts[m].items()}
        tensors = read_tensors(self.path, wanted)
        for new, tensor in tensors.items():
            if "lora_magnitude_vector" in wanted[new]:  # PEFT has it for outputs, however it lies
                module = new.removesuffix(".dora_scale")
                out = tensor.numel()
                ndim = max(len(self._shape_of(name)) for name in self.parts[module].values())
                tensors[new] = tensor.reshape(out, *[1] * (ndim - 1))
        if all(_is_zero(self._of(module, tensors)) for module in modules):
            raise ValueError(f"{self.path.name} changes nothing: all of its products are 0. It was never trained.")
        config = self._config()
        for module in modules:
            if tensors.get(f"{module}.oft_blocks", torch.tensor(0)).ndim == 4:
                tensors.setdefault(f"{module}.alpha", torch.tensor(0.0))  # BOFT without a limit; core wants to be told
            if config is not None and "alpha" not in self.parts[module] and (rank := self._rank(module)):
                tensors[f"{module}.alpha"] = torch.tensor(config.alpha_of(self._trained(module), rank))
        return tensors

    def _of(self, module: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {part: tensors[f"{module}.{part}"] for part in self.parts[module]}

    def _rank(self, module: str) -> int | None:
        return shapes.rank_of({part: self._shape_of(name) for part, name in self.parts[module].items()})

    def _config(self) -> PeftConfig | None:
        text = self.header.metadata.get("lora_adapter_metadata")
        beside = self.path.with_name(_PEFT_CONFIG)
        if text is None and self.path.name == _PEFT_FILE and beside.is_file():
            if beside.stat().st_size > _LARGEST_CONFIG:
                raise ValueError(f"{beside.name} beside {self.path.name} is larger than {_LARGEST_CONFIG} bytes.")
            text = beside.read_text(encoding="utf-8", errors="replace")
        try:
            return None if text is None else read_config(text)
        except ValueError as error:
            raise ValueError(f"{self.path.name} cannot be used: {error}.") from error

    def _report(self, fitting: list[str], tensors: dict[str, Tensor]) -> list[str]:
        header, found = self.header, []
        ranks = sorted({rank for module in fitting if (rank := self._rank(module))})
        alphas = sorted({float(t) for name, t in tensors.items() if name.endswith(".alpha")})
        rank = f" of rank {_span(ranks)}" if ranks else ""
        alpha = f", alpha {_span(alphas)}" if alphas else ", no alpha (as if it were the rank)" if ranks else ""
        found.append(
            f"{self.path.name}: {_kinds(self.parts, fitting)}{rank}{alpha}; {layouts.layout_of(header.tensors)}."
        )
        found.append(f"{len(fitting)} of its {len(self.parts)} modules for this model are applied.")
        found += [f"Left out: {reason}." for reason in self._reasons()[:_SHOWN]]
        text = [name for name in self.renamed.unknown if name.startswith(("text_encoder", "lora_te"))]
        if text:
            found.append(
                f"{len(text)} tensors are for the text encoder, which this node leaves as it is; use Load LoRA."
            )
        others = [name for name in self.renamed.unknown if name not in set(text)]
        if others:
            shown = ", ".join(name[:100] for name in others[:_SHOWN])
            found.append(f"{len(others)} tensors belong to nothing in {name_of(self.model)}: {shown}.")
        if alphas and ranks and max(alphas) > 4 * max(ranks):
            found.append(
                f"An alpha of {max(alphas):g} at rank {max(ranks)} is unusually strong; begin with less strength."
            )
        zero = sum(_is_zero(self._of(module, tensors)) for module in fitting)
        if zero:
            found.append(f"{zero} modules are 0 and change nothing.")
        return found + about_itself(self.model, header)


# Parts of products, one of which being 0 makes the product 0; and parts that are added.
_FACTORS = ("lora_up", "lora_down", "hada_w", "lokr_w", "oft_blocks")
_ADDED = ("diff", "diff_b", "w_norm", "b_norm")


def _is_zero(parts: dict[str, Tensor]) -> bool:
    if "dora_scale" in parts or not any(part.startswith(_FACTORS) or part in _ADDED for part in parts):
        return False
    factors = [tensor for part, tensor in parts.items() if part.startswith(_FACTORS) or part == "alpha"]
    added = [tensor for part, tensor in parts.items() if part in _ADDED]
    product = not factors or any(not tensor.float().any() for tensor in factors)
    return product and not any(tensor.float().any() for tensor in added)


def _kinds(parts: dict[str, dict[str, str]], modules: list[str]) -> str:
    kinds = Counter("DoRA" if "dora_scale" in parts[module] else shapes.kind_of(parts[module]) for module in modules)
    return " and ".join(kind for kind, _ in kinds.most_common())


def _span(values: list) -> str:
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} to {values[-1]:g}"
