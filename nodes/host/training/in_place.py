"""Graphs of code that changes in place what a gradient needs.

The host's blocks add in place to what they are given, and to what a norm in them has kept; autograd refuses the
gradient then. torch's remedy (torch.autograd.graph.allow_mutation_on_saved_tensors) looks at every operation of both
directions in Python, which takes longer than the operations do on a card. Here a graph is made, and torch's version
counters say which of the tensors that it has kept were changed afterwards; it is made once more, with copies of those.
A network does the same in every step, so this happens in the first one; each graph is checked all the same.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(eq=False)
class InPlace:
    """`copied`: which of the tensors that a graph keeps are copied, by their order in it."""

    copied: set[int] = field(default_factory=set)

    def __call__(self, function: Callable[[], T]) -> T:
        """The result of `function`, which is called once more if anything new is to be copied."""
        while True:
            kept = _Kept(self.copied)
            with torch.autograd.graph.saved_tensors_hooks(kept.pack, _unpack):
                result = function()
            changed, kept.found = kept.changed(), []  # the graph alone holds them from here on
            if not changed:
                return result
            self.copied |= changed
            del result, kept  # there is no room for two graphs


class _One:
    def __init__(self, tensor: Tensor):
        self.tensor, self.version = tensor, tensor._version

    def is_changed(self) -> bool:
        return self.tensor._version != self.version


@dataclass(eq=False)
class _Kept:
    """The tensors of one graph."""

    copied: set[int]
    found: list[_One] = field(default_factory=list)

    def pack(self, tensor: Tensor) -> _One:
        tensor = tensor.detach()  # without a path back to the graph, which would hold itself
        one = _One(tensor.clone() if len(self.found) in self.copied else tensor)
        self.found.append(one)
        return one

    def changed(self) -> set[int]:
        return {i for i, one in enumerate(self.found) if one.is_changed()}


def _unpack(one: _One) -> Tensor:
    if one.is_changed():
        raise RuntimeError("A tensor that a gradient needs was changed in place after its graph had been made.")
    return one.tensor
