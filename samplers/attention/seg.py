"""Blurred queries, the perturbation of Smoothed Energy Guidance (Hong, NeurIPS 2024, arXiv 2408.00760)."""

import math

from einops import rearrange
from torch import Tensor

MEAN_FROM = 9999.0  # the standard deviation above which the blur is the mean


def blur_queries(q: Tensor, grid: tuple[int, ...], sigma: float) -> Tensor:
    """`q` blurred over the image with a Gaussian of standard deviation `sigma` tokens, each frame separately.

    The blur is linear over queries, so (G q) k^T = G (q k^T): it smooths the attention's energy. Above `MEAN_FROM`
    (infinity included) every query is the mean of its frame; at 0 nothing changes.

    `q`: [rows, heads, tokens, dim] with the tokens of `grid`, (h, w) or (t, h, w), row-major.

    Raises:
        ValueError: `q` does not have the number of tokens of the grid.
    """
    if math.prod(grid) != q.shape[2]:
        raise ValueError(f"There are {q.shape[2]} queries, but a grid of {' x '.join(map(str, grid))} tokens.")
    if sigma == 0:
        return q
    (height, width), heads = grid[-2:], q.shape[1]
    frames = rearrange(q, "r n (f h w) d -> (r f) (n d) h w", h=height, w=width)
    if sigma > MEAN_FROM:
        blurred = frames.float().mean((2, 3), keepdim=True).expand_as(frames)
    else:
        from torchvision.transforms.functional import gaussian_blur  # here, because its import takes long

        # Six standard deviations, rounded to an odd number, and no more than reflection at the edges allows.
        size = [min(math.ceil(6 * sigma) // 2 * 2 + 1, side // 2 * 2 + 1) for side in (width, height)]
        blurred = gaussian_blur(frames.float(), size, [sigma, sigma])
    return rearrange(blurred.to(q.dtype), "(r f) (n d) h w -> r n (f h w) d", r=q.shape[0], n=heads)
