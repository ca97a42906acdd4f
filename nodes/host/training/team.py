"""Several processes that train one LoRA on the images of each window, as torch.distributed has started them (torchrun,
accelerate): each takes every n-th part, numbers and gradients are added up, and all of them do the same with the sums.

Gradients are added in one tensor: products are small.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Team:
    """Of one process where torch.distributed is not in use."""

    def __init__(self):
        joined = dist.is_available() and dist.is_initialized()
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if joined else (0, 1)

    def mine(self, parts: Sequence) -> list:
        return list(parts[self.rank :: self.size])

    def exchange(self, values: Tensor) -> Tensor:
        """The sum over all processes, on each of them."""
        if self.size == 1:
            return values
        there = torch.device("cuda") if dist.get_backend() == "nccl" else values.device
        total = values.to(there, copy=True)
        dist.all_reduce(total)
        return total.to(values.device)

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        if self.size > 1:
            whole = self.exchange(torch.cat([_gradient(p).flatten() for p in parameters]))
            for p, part in zip(parameters, whole.split([p.numel() for p in parameters])):
                p.grad = part.view_as(p)


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
