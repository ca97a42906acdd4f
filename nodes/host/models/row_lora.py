"""LoRAs on some predictions of a network call and not on others, with one set of weights.

A merged LoRA acts on every row of the batch, and in 8-bit weights it is rounded together with them, so it cannot be
subtracted for some rows. Here its product, up(down(x)), is added to the output of its layer for its rows, and the
weights are without it. So a LoRA of the model that some rows do not have is not merged, and added to the other rows.

Relies on: APPLY_MODEL wrappers, once per network call, whose class object is the model (comfy/model_base.py:191);
torch's forward hooks; every chunk of a call being a contiguous part of the rows, in order (comfy/samplers.py:284);
patches of a patcher in lists by key, which a clone copies (comfy/model_patcher.py:446); the name of the wrapper that
compiles a network (comfy_api/torch_helpers/torch_compile.py:12).
"""

import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from ..run import Run, attach, current_run
from ..run.partial_calls import know_rows

KEY = "guidekit_row_lora"  # key of the wrapper, and of the current call in the options
_KIND = "row LoRA"  # kind of the techniques
COMPILED = "torch.compile"  # the host's key of its wrapper that inserts compiled modules


@dataclass(frozen=True, eq=False)
class Product:
    """The change `scale` up(down(x)) of the output of the module `path`, or the constant `scale` up where `down` is
    None; `place`: (first, number) of the output channels, None for all."""

    path: str
    up: Tensor
    down: Tensor | None
    scale: float
    place: tuple[int, int] | None

    def at(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """`up`, multiplied by the scale, and `down` on the device and in the dtype of x."""
        up = (self.scale * self.up.to(x.device, torch.float32)).to(x.dtype)
        return up, None if self.down is None else self.down.to(x.device, x.dtype)


@dataclass(frozen=True, eq=False)
class Unmerged:
    """A LoRA of the model itself, on one weight, that is not merged. `patch`: in the host's form, as it would be
    merged. `origin`: the patch that was removed from the patcher, which identifies the LoRA at any strength."""

    key: str
    patch: tuple
    product: Product
    origin: tuple

    def times(self, factor: float) -> "Unmerged":
        """The same LoRA with its strength multiplied by `factor`."""
        product = replace(self.product, scale=factor * self.product.scale)
        return replace(self, patch=(factor * self.patch[0], *self.patch[1:]), product=product)


@dataclass(frozen=True)
class Difference:
    """The LoRAs that some rows have in addition to the model's, and those of the model that they lack."""

    adds: tuple[Product, ...]
    lacks: tuple[Unmerged, ...]

    def __bool__(self) -> bool:
        return bool(self.adds or self.lacks)


class RowLora(Protocol):
    """A technique whose rows have other LoRAs than the model."""

    @property
    def difference(self) -> Difference: ...

    def chunks(self, run: Run, options: dict) -> list[int]:
        """The chunks of the current network call that these rows are in."""


@dataclass(frozen=True, eq=False)
class _RowLoras:
    unmerged: tuple[Unmerged, ...]

    def __call__(self, executor, x: Tensor, t: Tensor, c_concat, c_crossattn, control, transformer_options, **kwargs):
        run, hooks = current_run(transformer_options), []
        factors = run.notes.setdefault(self, {})
        count = len(transformer_options["cond_or_uncond"])
        call = _Call(tuple(range(count)), len(x) // count)
        options = {**transformer_options, KEY: call}
        try:
            for product, chunks in self._placed(run, options):
                module = executor.class_obj.get_submodule(product.path)
                hooks.append(module.register_forward_hook(_Add(product, _Rows(call, chunks), factors)))
            with _seen(run, executor.class_obj, options) if hooks else nullcontext():
                return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()

    def _placed(self, run: Run, options: dict) -> list[tuple[Product, frozenset[int]]]:
        """All products of the current call, each with the chunks that it is added to."""
        found: list[tuple[Product, frozenset[int]]] = []
        without: dict[int, set[int]] = {}  # by the id of the origin: the chunks that lack the LoRA
        for technique in run.techniques[_KIND]:
            chunks, difference = frozenset(technique.chunks(run, options)), technique.difference
            found += [(product, chunks) for product in difference.adds]
            for each in difference.lacks:
                without.setdefault(id(each.origin), set()).update(chunks)
        everywhere = frozenset(options[KEY].present)
        found += [(each.product, everywhere - without.get(id(each.origin), set())) for each in self.unmerged]
        return [(product, chunks) for product, chunks in found if chunks]


def _seen(run: Run, base: nn.Module, options: dict) -> AbstractContextManager:
    """A context in which forward hooks are called: a network that was compiled without them would ignore them."""
    compiled = COMPILED in options.get("wrappers", {}).get(WrappersMP.APPLY_MODEL, {})
    if not compiled and not any(hasattr(module, "_orig_mod") for module in base.modules()):
        return nullcontext()
    for technique in run.techniques[_KIND]:
        run.remark(technique, "Its LoRA is on some predictions only, so the network runs without torch.compile.")
    return torch.compiler.set_stance("force_eager")


@dataclass
class _Call:
    """A network call. `present`: the chunks whose rows are in its layers now, in order; `rows`: of each chunk."""

    present: tuple[int, ...]
    rows: int


@contextmanager
def only_chunks(transformer_options: dict, chunks: tuple[int, ...]) -> Iterator[None]:
    """Has to be entered where layers of the network are called with the rows of `chunks` alone."""
    call = transformer_options.get(KEY)
    if call is None:  # a model without LoRAs on some rows
        yield
        return
    before, call.present = call.present, chunks
    try:
        yield
    finally:
        call.present = before


@dataclass(frozen=True)
class _Rows:
    call: _Call
    chosen: frozenset[int]

    def spans(self, rows: int, path: str) -> list[tuple[int, int]]:
        """(first, number) of the rows of each chosen chunk, of `rows` in the module `path`.

        Raises:
            ValueError: the rows cannot be divided by chunk.
        """
        present = self.call.present
        here = [i for i, chunk in enumerate(present) if chunk in self.chosen]
        if len(here) == len(present):
            return [(0, rows)]
        each, rest = divmod(rows, len(present))
        if rest or each < self.call.rows:  # there may be more: the frames of a video
            raise ValueError(
                f"{path} of this network works on {rows} rows for {len(present)} predictions of {self.call.rows}, "
                "perhaps because another node splits the batch, so a LoRA cannot be put on one of them. Apply it to "
                "both, or give the other model weights of its own (load it twice)."
            )
        return [(i * each, each) for i in here]


@dataclass(eq=False)
class _Add:
    product: Product
    rows: _Rows
    factors: dict

    @torch.compiler.disable
    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0]
        key = self.product, x.device, x.dtype
        if key not in self.factors:
            self.factors[key] = self.product.at(x)
        up, down = self.factors[key]
        outputs = -1 if is_linear(module) else 1
        view = output if self.product.place is None else output.narrow(outputs, *self.product.place)
        for first, number in self.rows.spans(len(x), self.product.path):
            _add(module, view.narrow(0, first, number), x.narrow(0, first, number), up, down)
        return output


def _add(module: Any, output: Tensor, x: Tensor, up: Tensor, down: Tensor | None) -> None:
    """Adds the product in place to `output`, that of the host's layer `module` for the input `x`."""
    if is_linear(module):
        if down is None:
            output.add_(up)
        elif output.is_contiguous():  # multiplies and adds in one operation
            inner = nn.functional.linear(x, down)
            output.view(-1, output.shape[-1]).addmm_(inner.reshape(-1, inner.shape[-1]), up.T)
        else:
            output.add_(nn.functional.linear(nn.functional.linear(x, down), up))
    elif down is None:
        output.add_(up.reshape(-1, *[1] * (x.ndim - 2)))
    else:
        # The module's own convolution, with its stride and padding mode, and other weights.
        inner = module._conv_forward(x, down, None)
        output.add_(torch.einsum("or,br...->bo...", up.flatten(1), inner))


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer; the host's quantised ones are not nn.Linear (comfy/ops.py:1282)."""
    return hasattr(module, "in_features") and hasattr(module, "out_features")


def unmerged(model: ModelPatcher) -> tuple[Unmerged, ...]:
    """The model's LoRAs that are not merged into its weights."""
    wrappers = model.get_wrappers(WrappersMP.APPLY_MODEL, KEY)
    return wrappers[0].unmerged if wrappers else ()


def set_unmerged(model: ModelPatcher, found: tuple[Unmerged, ...]) -> None:
    """Replaces the unmerged LoRAs of a (cloned) model."""
    model.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, KEY)
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, _RowLoras(found))


def add_row_lora(model: ModelPatcher, technique: RowLora) -> None:
    """Applies the technique's difference to its rows in the network calls of a (cloned) model. The model's own LoRAs
    that these rows lack are no longer merged."""
    know_rows(model)
    before = unmerged(model)
    taken = [each for each in technique.difference.lacks if each not in before]
    for each in taken:
        rest = [patch for patch in model.patches[each.key] if patch is not each.patch]
        if rest:
            model.patches[each.key] = rest
        else:
            del model.patches[each.key]
    if taken:
        model.patches_uuid = uuid.uuid4()
    set_unmerged(model, (*before, *taken))
    attach(model, _KIND, technique)
