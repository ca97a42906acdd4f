"""Several processes that train one LoRA on the images of each window, as torch.distributed has started them (torchrun,
accelerate): each takes every n-th part, numbers and gradients are added up, and all of them do the same with the sums.

Gradients are added in one tensor: products are small.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ....samplers.reductions import wide_dtype


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


class Gradients:
    """The sum over the parts of a window, of all processes. In double precision, in which the order of the parts, and
    so the number of processes, is too little to be seen: Adam makes much of little."""

    def __init__(self, parameters: Sequence[nn.Parameter]):
        self.parameters = parameters
        device = parameters[0].device
        self.total = torch.zeros(sum(p.numel() for p in parameters), dtype=wide_dtype(device), device=device)

    def collect(self) -> None:
        """Takes what the parameters have, in one tensor: there are a thousand of them."""
        self.total += torch.cat(
            [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in self.parameters]
        )
        for p in self.parameters:
            p.grad = None

    def give(self, team: Team) -> None:
        """To the parameters, the sum of all processes."""
        total = team.exchange(self.total)
        for p, place in zip(self.parameters, total.split([p.numel() for p in self.parameters])):
            p.grad = place.view_as(p).to(p)
