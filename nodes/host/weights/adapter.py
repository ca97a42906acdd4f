"""A file of adapters (LoRA and related kinds) as patches of a model. Its header shows which modules fit; which of their
patches have an effect is found by applying them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....samplers.lora import keys as lora_keys
from ....samplers.lora import shapes
from ....samplers.lora.keys import ALPHA, SCALE
from ....samplers.lora.peft_config import PeftConfig, read_config
from ....samplers.lora.zeros import changes_nothing
from ..files.safetensors_header import Header
from ..files.tensors import FLOATS, read_tensors
from .check import Patched, without_effect
from .metadata import name_of, other_kind
from .names import Target
from .patches import patches_of
from .report import AdapterReport

_PEFT_FILE = "adapter_model.safetensors"  # PEFT writes its configuration beside a file of this name
_PEFT_CONFIG = "adapter_config.json"
_LARGEST_CONFIG = 2**20  # bytes
_INTEGERS = ("I64", "I32")
_WITH_INTEGERS = (ALPHA, "reshape_weight")


@dataclass(frozen=True)
class Module:
    """The adapter of one module. `trained`: the module's path in the file; `target`: the model's weight; `names`: the
    names of its parts in the file; `shapes`: the shapes of the parts."""

    trained: str
    target: Target
    names: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def rank(self) -> int | None:
        return shapes.rank_of(self.shapes)

    @property
    def kind(self) -> str:
        return "DoRA" if SCALE in self.names else shapes.kind_of(self.names)


class Adapter:
    """One file of adapters. `names`: {name after the host's converters: name in the file}; `known`: the model's
    modules, by the paths in `renamed`."""

    def __init__(
        self,
        model: ModelPatcher,
        path: Path,
        header: Header,
        names: Mapping[str, str | None],
        known: Mapping[str, Target],
        renamed: lora_keys.Renamed,
    ) -> None:
        self.model, self.path, self.header = model, path, header
        self.report = AdapterReport(model, path, header, names, renamed)
        self.modules = [self._module(known[path], parts, names) for path, parts in renamed.parts.items()]

    def _module(self, target: Target, parts: Mapping[str, str], names: Mapping[str, str | None]) -> Module:
        in_file = {part: name for part, spelled in parts.items() if (name := names[spelled]) is not None}
        either = next(iter(in_file.values())), next(iter(parts.values()))
        first = next(name for name in map(lora_keys.split, either) if name is not None)
        of_file = {part: self.header.tensors[name].shape for part, name in in_file.items()}
        return Module(first.module, target, in_file, {part: of_file.get(part, ()) for part in parts})

    def read(self) -> tuple[dict, list[str]]:
        """(patches for `add_patches`, sentences of the report)

        Raises:
            ValueError: no part of the file can be applied, with the reason.
        """
        fitting = self._fitting()
        if not fitting:
            self._refuse()
        tensors = self._tensors(fitting)
        trained = [module for module in fitting if not changes_nothing(tensors[module.trained])]
        if not trained:
            raise ValueError(f"{self.path.name} changes nothing: all of its products are 0. It was never trained.")
        patches = self._patches(trained, tensors)
        applied = [module for module in trained if module.trained in {each.module for each in patches}]
        if not applied:
            self._refuse()
        parts = [tensors[module.trained] for module in applied if module.rank is not None]
        alphas = [each[ALPHA].item() for each in parts if ALPHA in each]
        report = self.report.sentences(applied, alphas, len(fitting) - len(trained))
        return {each.target.name: each.patch for each in patches}, report

    def _refuse(self) -> None:
        raise ValueError(
            f"{self.path.name} does not fit {name_of(self.model)}{other_kind(self.header)}: of its "
            f"{self.report.modules} modules none can be used. {self.report.reasons()[0]}."
        )

    def _fitting(self) -> list[Module]:
        """The modules whose parts fit a weight of the model; the others are added to the report."""
        state, found, taken = self.model.model.state_dict(), [], set()
        for module in self.modules:
            target = module.target
            bias = target.bias.shape(self.model) if target.bias.key in state else None
            wrong = shapes.problem(module.shapes, target.shape(self.model), bias) or self._wrong_numbers(module)
            if wrong is None and target in taken:
                wrong = "is for a weight that another module of the file changes already"
            if wrong is None:
                found.append(module)
                taken.add(target)
            else:
                self.report.leave_out(module.trained, wrong)
        return found

    def _wrong_numbers(self, module: Module) -> str | None:
        for part, name in module.names.items():
            dtype = self.header.tensors[name].dtype
            if dtype not in FLOATS and not (part in _WITH_INTEGERS and dtype in _INTEGERS):
                return f"has {part} in {dtype}"
        return None

    def _tensors(self, modules: list[Module]) -> dict[str, dict[str, Tensor]]:
        """The parts of each module, by its path in the file."""
        wanted = {f"{m.trained}.{part}": name for m in modules for part, name in m.names.items()}
        tensors, config, found = read_tensors(self.path, wanted), self._config(), {}
        for module in modules:
            parts = {part: tensors.get(f"{module.trained}.{part}", torch.tensor(0)) for part in module.shapes}
            if "lora_magnitude_vector" in module.names.get(SCALE, ""):  # PEFT's is per output, in any shape
                ndim = max(map(len, module.shapes.values()))
                parts[SCALE] = parts[SCALE].reshape(-1, *[1] * (ndim - 1))
            if config is not None and ALPHA not in parts:
                self._share(module, parts, config)
            found[module.trained] = parts
        return found

    def _share(self, module: Module, parts: dict[str, Tensor], config: PeftConfig) -> None:
        """Applies the scale from PEFT's configuration to the parts of a product."""
        try:
            if module.rank is not None:
                parts[ALPHA] = torch.tensor(config.share(module.trained, module.rank) * module.rank)
            elif "lokr_w1" in parts:  # factors without a rank
                parts["lokr_w1"] = config.share(module.trained, None) * parts["lokr_w1"].float()
        except ValueError as error:
            raise ValueError(f"{self.path.name} cannot be used: {error}.") from error

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

    def _patches(self, modules: list[Module], tensors: Mapping[str, dict[str, Tensor]]) -> list[Patched]:
        """The patches of modules all of whose patches have an effect; the others are added to the report."""
        found = []
        for module in modules:
            for target, patch in patches_of(self.model, module.target, tensors[module.trained]).items():
                found.append(Patched(module.trained, target, patch, target.whole.shape(self.model)))
        idle = without_effect(self.model, found)
        for module in modules:
            if module.trained in idle:
                self.report.leave_out(module.trained, f"is {module.kind} that leaves the weight as it is")
        return [each for each in found if each.module not in idle]
