"""Gradient checkpointing (Chen et al. 2016, arXiv 1604.06174): a block keeps what it is given, and is run once more
when its gradient is wanted.

The host's blocks add in place to what they are given, and to what a norm in them has kept. Where such a block is run
again as torch.utils.checkpoint does it, it is so given other numbers, and gradients are wrong without an error (those
of the Flux family by the host's own trainer). Here a block works on copies, and what it has kept is kept (in_place.py).

Relies on: PatcherInjection (comfy/patcher_extension.py:132).
"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import PatcherInjection
from torch import Tensor, nn

from .in_place import InPlace

KEY = "guidekit_checkpointing"
_CONTAINERS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)


def add_checkpointing(model: ModelPatcher) -> None:
    """To a (cloned) model, for as long as it is loaded with this."""
    found = _Blocks([_Block(module) for module in blocks_of(model.model.diffusion_model)])
    model.set_injections(KEY, [PatcherInjection(inject=found.inject, eject=found.eject)])


def blocks_of(network: nn.Module) -> Iterator[nn.Module]:
    """The parts of a network that its `forward` calls; of lists of parts, each. Single layers are none: products are
    beside them."""
    for child in network.children():
        if isinstance(child, _CONTAINERS):
            yield from blocks_of(child)
        elif any(True for _ in child.children()):
            yield child


@dataclass(eq=False)
class _Blocks:
    blocks: list["_Block"]

    def inject(self, _model: ModelPatcher) -> None:
        for block in self.blocks:
            block.forward, block.module.forward = block.module.forward, block

    def eject(self, _model: ModelPatcher) -> None:
        # The host takes injections away in the order in which they came: what was there before may be gone already.
        for block in self.blocks:
            if block.module.forward is block:
                block.module.forward = block.forward


@dataclass(eq=False)
class _Block:
    module: nn.Module
    forward: Callable[..., Any] = field(init=False)  # the module's own
    in_place: InPlace = field(default_factory=InPlace)

    def __call__(self, *args, **kwargs) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        tensors = list(_tensors((args, kwargs)))
        # One that has a gradient for sure: the products inside have, even if nothing that comes in has.
        begin = torch.zeros((), device=tensors[0].device if tensors else None, requires_grad=True)
        # Copies of dicts: the host writes into one dict which block is next.
        args, kwargs = _filled((args, kwargs), iter(tensors))
        again = _Again(self.forward, args, kwargs, self.in_place)
        shape: list[Any] = []
        outputs = _Checkpoint.apply(again, shape, begin, *tensors)
        return _filled(shape[0], iter(outputs))


@dataclass
class _Again:
    """A call that can be made anew with other tensors."""

    function: Callable[..., Any]
    args: tuple
    kwargs: dict
    in_place: InPlace

    def graph(self, tensors: tuple[Tensor, ...]) -> Any:
        return self.in_place(partial(self, tensors))

    def __call__(self, tensors: tuple[Tensor, ...]) -> Any:
        args, kwargs = _filled((self.args, self.kwargs), iter([tensor.clone() for tensor in tensors]))
        return self.function(*args, **kwargs)


class _Checkpoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx, again: _Again, shape: list, _begin: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.again = again
        ctx.save_for_backward(*tensors)
        result = again(tensors)
        shape.append(result)
        return tuple(_tensors(result))

    @staticmethod
    def backward(ctx, *gradients: Tensor | None):
        kept = [t.detach().requires_grad_(needed) for t, needed in zip(ctx.saved_tensors, ctx.needs_input_grad[3:])]
        with torch.enable_grad():
            outputs = list(_tensors(ctx.again.graph(tuple(kept))))
            wanted = [(o, g) for o, g in zip(outputs, gradients) if o.requires_grad and g is not None]
            if wanted:
                torch.autograd.backward([o for o, _ in wanted], [g for _, g in wanted])
        return None, None, None, *(t.grad for t in kept)


def _tensors(tree: Any) -> Iterator[Tensor]:
    """Floats in nested dicts, lists, tuples and dataclasses, in order."""
    if isinstance(tree, Tensor):
        if tree.is_floating_point():
            yield tree
    elif part := _parts(tree):
        for each in part:
            yield from _tensors(each)


def _filled(tree: Any, tensors: Iterator[Tensor]) -> Any:
    """The same with others in their places."""
    if isinstance(tree, Tensor):
        return next(tensors) if tree.is_floating_point() else tree
    if isinstance(tree, dict):
        return {key: _filled(value, tensors) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(_filled(each, tensors) for each in tree))
    if isinstance(tree, (list, tuple)):
        return type(tree)(_filled(each, tensors) for each in tree)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return dataclasses.replace(tree, **{f.name: _filled(getattr(tree, f.name), tensors) for f in _fields(tree)})
    return tree


def _parts(tree: Any) -> list | None:
    if isinstance(tree, dict):
        return list(tree.values())
    if isinstance(tree, (list, tuple)):
        return list(tree)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return [getattr(tree, field.name) for field in _fields(tree)]
    return None


def _fields(tree: Any) -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(tree) if field.init]
