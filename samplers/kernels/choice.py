"""Which version of an operation runs: the fused kernel, where there is one for the device, or the one in torch."""

import logging
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)


class KernelError(RuntimeError):
    """The kernel cannot be compiled or started on this machine: no C compiler, a device that Triton does not know..."""


_in_torch: dict[tuple[str, torch.device, torch.dtype], str] = {}  # where a kernel cannot run, and why


def fastest(what: str, kernels: Callable[[], ModuleType], name: str, in_torch: Callable, tensor: Tensor, *rest: Any):
    """`name(tensor, *rest)` of the module that `kernels` imports, or `in_torch` of the same if that cannot be. It is
    tried once for a device and a type; why not is logged once."""
    place = what, tensor.device, tensor.dtype
    if place not in _in_torch:
        try:
            return getattr(kernels(), name)(tensor, *rest)
        except (ImportError, KernelError) as error:
            why = str(error).split("\n")[0]
            if (what, why) not in {(known, reason) for (known, *_), reason in _in_torch.items()}:
                log.info("%s on %s in %s runs in torch: %s", *place, why)
            _in_torch[place] = why
    return in_torch(tensor, *rest)
