"""Products beside a network's layers, to be trained: y = W x + m up(down(x)), the weights W as they are.

`m`, the multiplier, is 1 for the tuned model and 0 for the reference, which so needs no second model and is exact. A
training that starts from a LoRA has that as its reference: at 0 the product is the one it began with.

They are forward hooks. The host's own way for LoRAs that are not merged (BypassInjectionManager) replaces `forward` of
a layer, and the host takes such replacements away in the order in which they came, so that of two on one layer the
first one stays in the network.

Relies on: `injections` of a patcher, which are made when it is loaded (comfy/model_patcher.py:1411).
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import PatcherInjection
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .layers import Linear

KEY = "guidekit_training"
TUNED, REFERENCE = 1.0, 0.0
Factors = tuple[Tensor, Tensor]  # up [out, rank], down [rank, in]


class Product(nn.Module):
    """A forward hook of its layer. `start`: what it begins with and what the reference has; None: up is 0, and the
    reference has nothing."""

    def __init__(self, outputs: int, inputs: int, rank: int, chance: torch.Generator, start: Factors | None):
        super().__init__()
        self.multiplier = TUNED
        bound = 1 / math.sqrt(inputs)  # as nn.Linear begins
        down = (2 * torch.rand((rank, inputs), generator=chance) - 1) * bound
        up, down = (torch.zeros(outputs, rank), down) if start is None else (t.float().clone() for t in start)
        self.up, self.down = nn.Parameter(up), nn.Parameter(down)
        self.start_up, self.start_down = nn.Parameter(up.clone(), False), nn.Parameter(down.clone(), False)
        self.starts_at_zero = start is None

    def forward(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        [x, *_] = inputs
        if self.multiplier == REFERENCE:
            return output if self.starts_at_zero else output + _product(x, self.start_up, self.start_down)
        return output + _product(x, self.up, self.down)


def _product(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """In the type of x, whose gradients arrive in that of the factors."""
    return nn.functional.linear(nn.functional.linear(x, down.to(x.dtype)), up.to(x.dtype))


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone()


@dataclass(eq=False)
class _Hooks:
    products: Mapping[str, Product]
    handles: list[RemovableHandle] = field(default_factory=list)

    def inject(self, model: ModelPatcher) -> None:
        self.handles += [
            model.model.get_submodule(path).register_forward_hook(product) for path, product in self.products.items()
        ]

    def eject(self, _model: ModelPatcher) -> None:
        while self.handles:
            self.handles.pop().remove()


class Adapters:
    """The products of a training, by the paths of their layers. They are the same for one seed, whatever else."""

    def __init__(self, layers: Mapping[str, Linear], rank: int, seed: int, start: Mapping[str, Factors] | None = None):
        chance, self.rank = torch.Generator().manual_seed(seed), rank
        start = {} if start is None else start
        self.products = {
            path: Product(layer.out_features, layer.in_features, rank, chance, start.get(path))
            for path, layer in layers.items()
        }

    def parameters(self) -> list[nn.Parameter]:
        return [factor for product in self.products.values() for factor in (product.up, product.down)]

    @contextmanager
    def at(self, multiplier: float) -> Iterator[None]:
        """`REFERENCE`, for as long as it is wanted; else they are `TUNED`."""
        self._use(multiplier)
        try:
            yield
        finally:
            self._use(TUNED)

    def _use(self, multiplier: float) -> None:
        for product in self.products.values():
            product.multiplier = multiplier

    def factors(self) -> dict[str, Factors]:
        """On the processor."""
        return {path: (_copy(p.up), _copy(p.down)) for path, p in self.products.items()}

    @contextmanager
    def on(self, model: ModelPatcher) -> Iterator[ModelPatcher]:
        """A clone of `model` in whose runs they are; afterwards its network is as it was."""
        model = model.clone()
        hooks = _Hooks(self.products)
        model.set_injections(KEY, [PatcherInjection(inject=hooks.inject, eject=hooks.eject)])
        self._use(TUNED)
        try:
            yield model
        finally:
            with model.use_ejected():
                model.remove_injections(KEY)
