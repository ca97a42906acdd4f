"""Diffusion-KTO (Li, Kallidromitis, Gokul, Kato, Kozuka: "Aligning Diffusion Models by Optimizing Human Utility",
NeurIPS 2024, arXiv 2404.04465): single votes, no pairs.

    g = e_ref - e                      the gain of the tuned model over the reference on a noised image: errors, means
    h = sigmoid(s beta (g - q))        the utility; s = +1 for liked images, -1 for disliked ones
    loss = mean of 1 - h               q: the reference point, without a gradient

Errors are means of squares in the space of the network's output; noise and noise level are the same for both models.
The paper's q is beta KL(tuned || reference), estimated on images of other prompts and not below 0; the authors' code
takes the same images (jacklishufan/diffusion-kto @ 226bbd0), and so does `reference_point`.
"""

import torch
from torch import Tensor

REFERENCE_POINTS = ("mean", "mean of classes", "none")


def reference_point(gain: Tensor, liked: Tensor, kind: str = "mean") -> Tensor:
    """q of a window of votes [n] -> []. "mean": of all gains, not below 0; "mean of classes": halfway between the mean
    of the liked and that of the disliked ones, of any sign, which keeps the loss balanced where one kind is rare;
    "none": 0."""
    if kind == "none":
        return torch.zeros((), dtype=gain.dtype, device=gain.device)
    if kind == "mean":
        return gain.detach().mean().clamp(min=0)
    kinds = [gain.detach()[chosen].mean() for chosen in (liked, ~liked) if chosen.any()]
    return torch.stack(kinds).mean()


def utility(gain: Tensor, liked: Tensor, beta: float, point: Tensor) -> Tensor:
    """h in 0..1, [n]."""
    return torch.sigmoid(_sign(liked, gain) * beta * (gain - point))


def loss(gain: Tensor, liked: Tensor, beta: float, point: Tensor) -> Tensor:
    """[n]; the paper's is the mean."""
    return 1 - utility(gain, liked, beta, point)


def slope(gain: Tensor, liked: Tensor, beta: float, point: Tensor) -> Tensor:
    """Derivative of each vote's loss by its error e, [n]: at most beta/4, above 0 for liked images."""
    h = utility(gain, liked, beta, point)
    return _sign(liked, gain) * beta * h * (1 - h)


def _sign(liked: Tensor, gain: Tensor) -> Tensor:
    return torch.where(liked, 1.0, -1.0).to(gain.dtype)
