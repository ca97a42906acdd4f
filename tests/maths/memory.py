"""Measures memory by the tensors that are made."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """The most bytes of tensors made inside that were alive at one time."""

    alive = peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        before = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        given = {each.untyped_storage().data_ptr() for each in before}
        for each in tree_leaves(made):
            if isinstance(each, torch.Tensor) and each.untyped_storage().data_ptr() not in given:
                self._count(each.untyped_storage().nbytes())
                weakref.finalize(each.untyped_storage(), self._count, -each.untyped_storage().nbytes())
        return made

    def _count(self, size):
        self.alive += size
        self.peak = max(self.peak, self.alive)
