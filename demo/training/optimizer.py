"""Muon for hidden matrices, AdamW for the rest."""

from collections.abc import Collection

import torch
from torch import nn


class Optimizer:
    """Muon (Jordan et al. 2024) for hidden matrices, AdamW for embeddings, first and last layers, gains and biases.

    A convolution is the matrix [out, in * height * width]. Weights whose name ends as one of `ends` are not hidden.
    """

    def __init__(self, module: nn.Module, ends: Collection[str] | None, muon: float = 2e-3, adam: float = 1e-3):
        named = {name: p for name, p in module.named_parameters() if p.requires_grad}
        hidden = [] if ends is None else [k for k, p in named.items() if p.ndim > 1 and not k.endswith(tuple(ends))]
        self.hidden = [named[k] for k in hidden]
        self.matrices = [nn.Parameter(p.detach().flatten(1)) for p in self.hidden]  # views: updates reach the module
        rest = [p for k, p in named.items() if k not in set(hidden)]
        self.parts = [torch.optim.AdamW(rest, lr=adam, betas=(0.9, 0.99), weight_decay=0.01)]
        if self.matrices:
            self.parts.append(
                torch.optim.Muon(self.matrices, lr=muon, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
            )
        self.peaks = [part.param_groups[0]["lr"] for part in self.parts]

    def step(self, rate: float) -> None:
        """One step at `rate` times the peak learning rates."""
        for matrix, parameter in zip(self.matrices, self.hidden):
            matrix.grad = parameter.grad.flatten(1)
        for part, peak in zip(self.parts, self.peaks):
            part.param_groups[0]["lr"] = peak * rate
            part.step()

    def state(self) -> list[dict]:
        return [part.state_dict() for part in self.parts]

    def load(self, state: list[dict]) -> None:
        for part, saved in zip(self.parts, state):
            part.load_state_dict(saved)
