"""Direct Inversion (Ju et al.: "PnP Inversion: Boosting Diffusion-based Editing with 3 Lines of Code", ICLR 2024, arXiv
2310.01506): a deterministic inversion is kept step by step, and the source is put back onto it.

The paper adds to the source, after each step of the generation, what lacks to the latent that the inversion had there.
The sum is that latent, so it is set here; what the step made of the source is not needed. What is gained are the
source's tokens inside the network, at every step those of the very image: other rows of the batch can be made to
take from them.

All is in the coordinates of `pairs.py`.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .reversible import Drift


def record(f: Drift, image: Tensor, sigmas: Sequence[float], before: Callable[[int], None]) -> list[Tensor]:
    """DDIM inversion: [x_0, ..., x_N], from the noisy end to `image`, at the falling levels `sigmas`.

        x_i = x_{i+1} + (sigma_i - sigma_{i+1}) f(x_{i+1}, sigma_i)

    The drift is asked at the level that is stepped to, as in the paper. `before(i)` is told that f is asked for step i
    of the generation, which goes from level i to level i + 1.
    """
    x, kept = image, [image]
    for i in reversed(range(len(sigmas) - 1)):
        before(i)
        x = x + (sigmas[i] - sigmas[i + 1]) * f(x, sigmas[i])
        kept.append(x)
    return kept[::-1]


def replay(f: Drift, source: Sequence[Tensor], sigmas: Sequence[float], before: Callable[[int], None]) -> Tensor:
    """DDIM sampling of a batch [source, target], both from `source[0]`; the source, row 0, is the kept one at every
    level. `source`: of `record`, each [1, ...]."""
    x = torch.cat([source[0], source[0]])
    for i, (sigma, target) in enumerate(zip(sigmas, sigmas[1:])):
        before(i)
        x = x + (target - sigma) * f(x, sigma)
        x = torch.cat([source[i + 1], x[1:]])
    return x
