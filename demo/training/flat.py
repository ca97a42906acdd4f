"""Muon and AdamW over all weights at once, in a few operations that a CUDA graph can hold.

Small networks are bound by the launches of their optimizer, not by its arithmetic. Here all weights lie in one float32
buffer, hidden matrices of one shape behind each other, so that a whole step is some hundred kernels. Nothing is copied
to the host: counts, rates and the gradient's norm stay on the device.
"""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

_ALIGN = 64  # elements: what kernels for vectors and tensor cores want
_BETAS, _EPS = (0.9, 0.99), 1e-8  # AdamW
_MOMENTUM = 0.95  # Muon, Nesterov
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of Jordan et al. 2024, five times
_DECAY = 0.01  # of weights


def orthogonal(matrices: Tensor) -> Tensor:
    """Nearly the closest orthogonal matrices to [k, m, n], in bfloat16 (Newton-Schulz; Jordan et al. 2024)."""
    a, b, c = _NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.bfloat16().mT if tall else matrices.bfloat16()
    x = x / x.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Flat:
    """Takes over the weights of `module`, in whatever type they are: they become views of `work`, which follows
    `master`. `hidden` weights are those of `Optimizer` (optimizer.py); the learning rates are as there.

    `start`: initial float32 values by name, for weights that the module holds with less precision. `average` is an
    exponential moving average that remembers less of the first steps, as in state.py.
    """

    def __init__(
        self,
        module: nn.Module,
        ends: Collection[str] | None,
        muon: float = 2e-3,
        adam: float = 1e-3,
        decay: float = 0.999,
        start: Mapping[str, Tensor] | None = None,
    ):
        named = {name: p for name, p in module.named_parameters() if p.requires_grad}
        hidden = [] if ends is None else [k for k, p in named.items() if p.ndim > 1 and not k.endswith(tuple(ends))]
        shapes: dict[torch.Size, list[str]] = {}
        for name in hidden:
            shapes.setdefault(named[name].flatten(1).shape, []).append(name)
        first = next(iter(named.values()))
        device, dtype = first.device, first.dtype

        self.module, self.muon, self.adam, self.decay = module, muon, adam, decay
        self.places: dict[str, tuple[int, torch.Size]] = {}
        self.groups: list[tuple[int, int, torch.Size]] = []  # offset, how many, shape
        end = 0
        for name in [k for k in named if k not in set(hidden)]:
            self.places[name] = (end, named[name].shape)
            end += -(-named[name].numel() // _ALIGN) * _ALIGN
        self.rest = end
        for shape, names in shapes.items():
            self.groups.append((end, len(names), shape))
            for i, name in enumerate(names):
                self.places[name] = (end + i * shape.numel(), named[name].shape)
            end += -(-len(names) * shape.numel() // _ALIGN) * _ALIGN

        self.master = torch.zeros(end, device=device)
        for name in self.places:
            self.view(self.master, name).copy_((named if start is None else start)[name].detach())
        self.work = self.master if dtype == torch.float32 else self.master.to(dtype)
        self.grad = torch.zeros(end, device=device, dtype=dtype)
        for name, parameter in named.items():
            parameter.data = self.view(self.work, name)
            parameter.grad = self.view(self.grad, name)
        self.average = self.master.clone()
        self.first, self.second = torch.zeros(2, self.rest, device=device)
        self.momentum = torch.zeros(end - self.rest, device=device)
        self.count = torch.zeros((), device=device)
        self.rate = torch.ones((), device=device)  # share of the peak learning rates; written before a step
        norms = [(name, m) for name, m in module.named_modules() if isinstance(m, nn.BatchNorm2d)]
        self.statistics = {f"{name}.{k}": getattr(m, k) for name, m in norms for k in ("running_mean", "running_var")}
        self.averages = {name: value.clone() for name, value in self.statistics.items()}

    def view(self, buffer: Tensor, name: str) -> Tensor:
        offset, shape = self.places[name]
        return buffer[offset : offset + shape.numel()].view(shape)

    @torch.no_grad()
    def step(self) -> None:
        """One step from the gradients, which are set to zero afterwards."""
        self.count += 1
        grad = self.grad.float()
        grad = grad * (1 / (grad.norm() + 1e-6)).clamp(max=1)  # clipped to a norm of 1
        self._adam(grad[: self.rest])
        self._muon(grad[self.rest :])
        if self.work is not self.master:
            self.work.copy_(self.master)
        weight = 1 - ((1 + self.count) / (10 + self.count)).clamp(max=self.decay)
        self.average.lerp_(self.master, weight)
        for name, value in self.statistics.items():
            self.averages[name].lerp_(value, weight)
        self.grad.zero_()

    def _adam(self, grad: Tensor) -> None:
        lr, (one, two), weights = self.rate * self.adam, _BETAS, self.master[: self.rest]
        self.first.lerp_(grad, 1 - one)
        self.second.mul_(two).addcmul_(grad, grad, value=1 - two)
        deviation = (self.second / (1 - torch.pow(two, self.count))).sqrt() + _EPS
        update = self.first / (1 - torch.pow(one, self.count)) / deviation
        weights.mul_(1 - lr * _DECAY).sub_(lr * update)

    def _muon(self, grad: Tensor) -> None:
        lr = self.rate * self.muon
        self.momentum.lerp_(grad, 1 - _MOMENTUM)
        update = grad.lerp(self.momentum, _MOMENTUM)
        self.master[self.rest :].mul_(1 - lr * _DECAY)
        for offset, many, shape in self.groups:
            size = many * shape.numel()
            part = update[offset - self.rest :][:size].view(many, *shape)
            scale = lr * 0.2 * max(shape) ** 0.5  # as large as AdamW's updates
            self.master[offset : offset + size].view(many, *shape).sub_(scale * orthogonal(part).float())

    def averaged(self) -> dict[str, Tensor]:
        """A copy on the CPU of the module's state, with moving averages instead of the weights."""
        state = dict(self.module.state_dict())
        state |= {name: self.view(self.average, name) for name in self.places} | self.averages
        return {name: value.detach().cpu().clone() for name, value in state.items()}
