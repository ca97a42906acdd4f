"""LoRAs on some predictions of a network call and not on others, with one set of weights.

A LoRA that is merged is on every row of the batch. Here its product, up(down(x)), is added to what its layer gives for
the rows that it is meant for, so that predictions with and without it come from the same call.

Relies on: APPLY_MODEL wrappers, once per network call, whose class object is the model (comfy/model_base.py:191);
torch's forward hooks; every chunk of a call being one part of the rows, in order (comfy/samplers.py:284); patches of
a patcher as tuples (strength, what, strength of the weight, offset, function) that its clones share
(comfy/model_patcher.py:834).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy.weight_adapter import LoRAAdapter
from torch import Tensor, nn

from .parts import know_rows
from .run import Run, current_run

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, eq=False)
class Product:
    """`scale` up(down(x)), or a constant where `down` is None, for the module `path`; `place`: (first, number) of the
    outputs, None for all."""

    path: str
    up: Tensor
    down: Tensor | None
    scale: float
    place: tuple[int, int] | None

    def at(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The factors where x is, the scale in one of them."""
        up = (self.scale * self.up.to(x.device, torch.float32)).to(x.dtype)
        return up, None if self.down is None else self.down.to(x.device, x.dtype)


@dataclass(frozen=True, eq=False)
class _RowLora:
    products: tuple[Product, ...]
    chunks: Callable[[Run, dict], list[int]]

    def __call__(self, executor, *args, **kwargs) -> Tensor:
        options = args[5] if len(args) > 5 else kwargs["transformer_options"]
        run = current_run(options)
        chosen = self.chunks(run, options)
        if not chosen:
            return executor(*args, **kwargs)
        factors = run.notes.setdefault(self, {})
        rows = _Rows(len(args[0]), len(options["cond_or_uncond"]), chosen)
        hooks = []
        try:
            for product in self.products:
                module = executor.class_obj.get_submodule(product.path)
                hooks.append(module.register_forward_hook(_Add(product, rows, factors)))
            return executor(*args, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()


@dataclass(frozen=True)
class _Rows:
    """Of a call with `rows` rows in `chunks` chunks, those of some chunks."""

    rows: int
    chunks: int
    chosen: list[int]

    def spans(self, rows: int, path: str) -> list[tuple[int, int]]:
        """(first, number) of the rows of each."""
        each, rest = divmod(rows, self.chunks)
        if rest or rows < self.rows:  # more is what rides along
            raise ValueError(
                f"{path} of this network works on {rows} of {self.rows} rows, as where another node splits the batch, "
                "so that a LoRA cannot be put on one prediction. Apply it to both, or give the other model weights of "
                "its own (load it twice)."
            )
        return [(chunk * each, each) for chunk in self.chosen]


@dataclass(frozen=True)
class _Add:
    product: Product
    rows: _Rows
    factors: dict

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0]
        key = self.product, x.device, x.dtype
        if key not in self.factors:
            self.factors[key] = self.product.at(x)
        up, down = self.factors[key]
        outputs = -1 if _is_linear(module) else 1
        view = output if self.product.place is None else output.narrow(outputs, *self.product.place)
        for first, number in self.rows.spans(len(x), self.product.path):
            view.narrow(0, first, number).add_(_change(module, x.narrow(0, first, number), up, down))
        return output


def _change(module: nn.Module, x: Tensor, up: Tensor, down: Tensor | None) -> Tensor:
    if _is_linear(module):
        return up if down is None else nn.functional.linear(nn.functional.linear(x, down), up)
    if down is None:
        return up.reshape(-1, *[1] * (x.ndim - 2))
    # The module's own convolution, with its stride and its way of padding, by other weights.
    inner = module._conv_forward(x, down, None)
    return torch.einsum("or,br...->bo...", up.flatten(1), inner)


def _is_linear(module: nn.Module) -> bool:
    """The host's layers with quantised weights are no nn.Linear (comfy/ops.py:1282)."""
    return hasattr(module, "in_features") and hasattr(module, "out_features")


def add_row_lora(model: ModelPatcher, products: tuple[Product, ...], chunks: Callable[[Run, dict], list[int]]) -> None:
    """For a technique that is attached to the model as well. `chunks(run, transformer_options)`: which chunks of a
    network call the products are added to."""
    know_rows(model)
    model.add_wrapper(WrappersMP.APPLY_MODEL, _RowLora(products, chunks))


def shared_difference(model: ModelPatcher, other: ModelPatcher) -> tuple[Product, ...] | None:
    """What `other` adds to the layers of `model`, if the two are one network with different LoRAs; else None."""
    if other.model is not model.model or not _is_bare(other, model):
        return None
    products = []
    for key in {**model.patches, **other.patches}:
        mine, theirs = model.patches.get(key, []), other.patches.get(key, [])
        for sign, entries, rest in ((1, theirs, mine), (-1, mine, theirs)):
            for patch in entries:
                if any(patch is p for p in rest):
                    continue
                product = _product(model.model, key, patch, sign)
                if product is None:
                    return None
                products.append(product)
    return tuple(products)


def _product(base: nn.Module, key: str, patch: tuple, sign: int) -> Product | None:
    """None for a patch that is no product of two matrices on a layer."""
    strength, what, of_weight, offset, function = patch
    path, _, part = key.rpartition(".")
    module = base.get_submodule(path)
    layer = _is_linear(module) or isinstance(module, _CONVOLUTIONS) and module.groups == 1
    if not layer or of_weight != 1.0 or function is not None:
        return None
    if offset is not None and (offset[0] != 0 or part != "weight"):
        return None
    place = offset and (offset[1], offset[2])
    if part == "bias" and isinstance(what, tuple) and what[0] == "diff" and len(what[1]) == 1:
        return Product(path, what[1][0], None, sign * strength, place)
    if part != "weight" or type(what) is not LoRAAdapter:
        return None
    up, down, alpha, mid, dora_scale, reshape = what.weights
    if any(each is not None for each in (mid, dora_scale, reshape)):
        return None
    scale = 1.0 if alpha is None else alpha / down.shape[0]
    shape = getattr(module, "kernel_size", None)
    if shape is None:
        up, down = up.flatten(1), down.flatten(1)
    elif down.ndim == 2:
        down = down.reshape(len(down), -1, *shape)
    return Product(path, up, down, sign * strength * scale, place)


def _is_bare(other: ModelPatcher, model: ModelPatcher) -> bool:
    """Whether `other` has nothing but weight patches that `model` has not."""
    return (
        all(
            _within(getattr(other, name), getattr(model, name))
            for name in ("model_options", "object_patches", "wrappers", "callbacks", "injections", "hook_patches")
        )
        and not other.additional_models.keys() - model.additional_models.keys()
    )


def _within(some: Any, all_: Any) -> bool:
    if isinstance(some, dict) and isinstance(all_, dict):
        return all(_within(value, all_.get(key, _empty(value))) for key, value in some.items())
    if isinstance(some, list) and isinstance(all_, list):
        return all(any(_within(one, another) for another in all_) for one in some)
    return some is all_ or isinstance(some, (int, float, str)) and some == all_


def _empty(value: Any) -> Any:
    """What counts as the same as nothing at all."""
    return type(value)() if isinstance(value, (dict, list)) else None
