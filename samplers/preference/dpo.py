"""Diffusion-DPO (Wallace et al.: "Diffusion Model Alignment Using Direct Preference Optimization", CVPR 2024, arXiv
2311.12908): pairs of a better and a worse image of one prompt.

    loss = -log sigmoid(beta/2 (g_better - g_worse)),    g = e_ref - e as in Diffusion-KTO (kto.py)

Both images of a pair have the same noise and noise level. The half is that of the authors' code
(SalesforceAIResearch/DiffusionDPO @ 5233e75), for which the published beta are meant.
"""

import torch
from torch import Tensor


def loss(better: Tensor, worse: Tensor, beta: float) -> Tensor:
    """Of the gains of pairs, [n] x [n] -> [n]."""
    return -torch.nn.functional.logsigmoid(beta / 2 * (better - worse))


def slope(better: Tensor, worse: Tensor, beta: float) -> Tensor:
    """Derivative of each pair's loss by the error of its better image, [n]: at most beta/2. By that of its worse image
    it is the same with the other sign."""
    return beta / 2 * torch.sigmoid(-beta / 2 * (better - worse))
