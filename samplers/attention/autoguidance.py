"""Random degradation of tokens, which makes a worse network of a good one, for autoguidance (Karras et al., NeurIPS
2024, arXiv 2406.02507)."""

import torch
from torch import Tensor

from ..sending import sent


def drop(tokens: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Dropout: each number becomes 0 with `probability`, the others are multiplied by 1 / (1 - probability).

    `tokens`: [rows, ...]; every row gets the same pattern, so that a sample does not depend on its place in a batch.
    `generator`: on the CPU.
    """
    kept = torch.rand(tokens.shape[1:], generator=generator) >= probability
    return tokens * sent(kept, tokens.device) / max(1 - probability, 1e-6)


def add_noise(tokens: Tensor, size: float, generator: torch.Generator) -> Tensor:
    """Adds normal noise of `size` times the root mean square of a row of `tokens` [rows, ...]; the same pattern in
    every row. `generator`: on the CPU."""
    noise = torch.randn(tokens.shape[1:], generator=generator)
    spread = tokens.float().square().flatten(1).mean(1).sqrt().view(-1, *[1] * (tokens.ndim - 1))
    return tokens + (size * spread * sent(noise, tokens.device)).to(tokens.dtype)
