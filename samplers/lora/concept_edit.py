"""What a model makes of a concept, edited in closed form: TIME (Orgad et al.: "Editing Implicit Assumptions in
Text-to-Image Diffusion Models", ICCV 2023, arXiv 2303.08084) and UCE (Gandikota et al.: "Unified Concept Editing in
Diffusion Models", WACV 2024, arXiv 2308.14761).

A linear map W of the network is given texts. Of each text c_i it is said what the map is to give, v_i; then W' is the
minimum of

    sum_i a_i |W' c_i - v_i|^2 + lambda |W' - W|^2
    W' = (lambda W + V A C^T) (lambda I + C A C^T)^-1

In both papers v_i is what the unchanged map gives for other texts, v_i = W g_i. With the texts as columns of C and G

    W' - W = W (G - C) (lambda A^-1 + C^T C)^-1 C^T

whose inverse is of the size of the number of texts, and is the same for all maps that are given these texts. Of more
texts than channels it would be singular but for lambda, and large: then the other side of

    (lambda A^-1 + C^T C)^-1 C^T = A C^T (lambda I + C A C^T)^-1

is taken, whose inverse is of the size of the number of channels. A text that is to be kept has g = c and no column in
the first factor: the rank is the number of edited texts, however many are kept. So the change is a LoRA. And as W
stands on the left of everything, W' c = W (c + M c): what is edited is the text.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Wishes:
    """What a map is to give: for the text `given[i]` what it gave for `wanted[i]`, with the weight `weights[i]` above
    0.

    `given`, `wanted`: [N, C], as the map is given them; `weights`: [N].
    """

    given: Tensor
    wanted: Tensor
    weights: Tensor


@dataclass(frozen=True)
class TextEdit:
    """W' = W + (W shift) down for every map W [out, C]; `shift` [C, E], `down` [E, C], in double precision."""

    shift: Tensor
    down: Tensor

    @property
    def rank(self) -> int:
        return len(self.down)

    def up(self, weight: Tensor) -> Tensor:
        """The first factor for one map, [out, E]."""
        return weight.double() @ self.shift


def edit(wishes: Wishes, ridge: float) -> TextEdit:
    """The edit with lambda = `ridge`, above 0.

    Equal texts are one, with the sum of their weights and the mean of what is wanted: the minimum is the same, and the
    inverse is of fewer rows. A text of which the mean is itself is kept.
    """
    given, wanted, weights = _joined(wishes)
    edited = (wanted != given).any(1)
    if len(given) > given.shape[1]:
        weighted = weights[:, None] * given
        identity = torch.eye(given.shape[1], dtype=given.dtype, device=given.device)
        down = weighted[edited] @ torch.linalg.inv(ridge * identity + given.T @ weighted)
    else:
        down = torch.linalg.inv(torch.diag(ridge / weights) + given @ given.T)[edited] @ given
    return _narrow((wanted - given)[edited].T, down)


def _joined(wishes: Wishes) -> tuple[Tensor, Tensor, Tensor]:
    given, group = torch.unique(wishes.given.double(), dim=0, return_inverse=True)
    own = wishes.weights.double()
    weights = own.new_zeros(len(given)).index_add_(0, group, own)
    # The mean of the differences, so that a text that is kept, however often, stays exactly where it is.
    moved = (wishes.wanted.double() - wishes.given.double()) * own[:, None]
    moved = torch.zeros_like(given).index_add_(0, group, moved) / weights[:, None]
    return given, given + moved, weights


def _narrow(shift: Tensor, down: Tensor) -> TextEdit:
    """More texts than channels are products of a lower rank."""
    if len(down) > down.shape[1]:
        basis, mixed = torch.linalg.qr(down.T)  # down = mixed^T basis^T
        shift, down = shift @ mixed.T, basis.T
    return TextEdit(shift, down.contiguous())
