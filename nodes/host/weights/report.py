"""The report on a file of adapters: how many of its modules are applied, and why the others are not."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from comfy.model_patcher import ModelPatcher

from ....samplers.lora import keys as lora_keys
from ....samplers.lora import layouts
from ..files.safetensors_header import Header
from .metadata import about_itself, name_of

_SHOWN = 3  # examples in a sentence


class Applied(Protocol):
    """A module whose weights are applied."""

    @property
    def kind(self) -> str: ...

    @property
    def rank(self) -> int | None: ...


class AdapterReport:
    """Collects the report. `names`: those after the host's converters; `renamed`: the result of `lora_keys.rename`."""

    def __init__(
        self, model: ModelPatcher, path: Path, header: Header, names: Iterable[str], renamed: lora_keys.Renamed
    ) -> None:
        self.model, self.path, self.header, self.renamed = model, path, header, renamed
        self.modules = len({name.module for name in map(lora_keys.split, names) if name is not None})
        self._left_out: dict[str, list[str]] = {}  # modules as the file names them, by the reason

    def leave_out(self, module: str, why: str) -> None:
        """Notes that the module `module` of the file is not applied; `why` follows its name in a sentence."""
        self._left_out.setdefault(why, []).append(module[:200])

    def reasons(self) -> list[str]:
        """Why modules are left out, the most frequent reason first, each with an example."""
        found = sorted(self._left_out.items(), key=lambda item: -len(item[1]))
        return [f"{names[0]} {why}" + (f", and {len(names) - 1} like it" * (len(names) > 1)) for why, names in found]

    def sentences(self, applied: Sequence[Applied], alphas: Sequence[float], zeros: int) -> list[str]:
        """The report. `alphas`: those of the modules `applied`; `zeros`: how many modules have a product of 0."""
        found = [
            f"{self.path.name}: {len(applied)} of its {self.modules} modules are applied: {_kinds(applied)}"
            f"{_ranks(applied, alphas)}; {layouts.layout_of(self.header.tensors)}."
        ]
        if zeros:
            found.append(f"{_count(zeros, 'module')} 0 and change nothing.")
        found += [f"Left out: {reason}." for reason in self.reasons()[:_SHOWN]]
        text = [module for module in self.renamed.nowhere if lora_keys.is_of_text(module)]
        others = [module for module in self.renamed.nowhere if not lora_keys.is_of_text(module)]
        if text:
            found.append(
                f"{_count(len(text), 'module')} for the text encoder, which this node leaves as it is; use Load LoRA."
            )
        for names, what, say in (
            (others, "module", f"not in {name_of(self.model)}"),
            (self.renamed.repeated, "module", "named twice, and the first is used"),
            (self.renamed.unknown, "tensor", "not part of a known kind of adapter"),
        ):
            if names:
                examples = ", ".join(name[:100] for name in [*names][:_SHOWN])
                found.append(f"{_count(len(names), what)} {say}: {examples}.")
        ranks = [module.rank for module in applied if module.rank is not None]
        if alphas and ranks and max(alphas) > 4 * max(ranks):
            found.append(
                f"An alpha of {max(alphas):g} at rank {max(ranks)} is unusually strong; begin with less strength."
            )
        return found + about_itself(self.model, self.header)


def _count(number: int, what: str) -> str:
    return f"{number} {what} is" if number == 1 else f"{number} {what}s are"


def _kinds(applied: Sequence[Applied]) -> str:
    return " and ".join(kind for kind, _ in Counter(module.kind for module in applied).most_common())


def _ranks(applied: Sequence[Applied], alphas: Sequence[float]) -> str:
    ranks = {module.rank for module in applied if module.rank is not None}
    rank = f" of rank {_span(ranks)}" if ranks else ""
    alpha = f", alpha {_span(alphas)}" if alphas else ", no alpha (as if it were the rank)" if ranks else ""
    return rank + alpha


def _span(values: Collection[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
