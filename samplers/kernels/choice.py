"""Chooses between the fused kernel of an operation and its version in torch."""

import logging
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)


class KernelError(RuntimeError):
    """The kernel cannot be compiled or started on this machine: no C compiler, a device unknown to Triton, ..."""


_in_torch: dict[tuple[str, torch.device, torch.dtype], str] = {}  # where a kernel cannot run: the reason


def fastest(what: str, kernels: Callable[[], ModuleType], name: str, in_torch: Callable, tensor: Tensor, *rest: Any):
    """The result of the function `name` in the module that `kernels` imports, or of `in_torch` with the same arguments
    where that is not possible. A failure is remembered for the device and dtype, and logged once for `what`."""
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
