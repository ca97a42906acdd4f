"""Votes on random latents, and trainings on them."""

from dataclasses import replace

import torch

from guidekit.nodes.host.training.trainer import Settings, Trainer
from guidekit.nodes.host.votes.vote_set import VoteRow, VoteSet
from guidekit.samplers.preference.objectives import KTO
from guidekit.tests.host import tiny

OF_TRAINING, OF_HELD_OUT = 300, 400  # seeds


def vote_set(family: str, number: int = 8, held_out: int = 0, cfg: float | None = 3.0) -> VoteSet:
    """Of two prompts, half of each liked, in pairs."""
    prompts = [tiny.conditioning(family, 11 + i) for i in range(2)]
    negative = tiny.conditioning(family, 22)

    def row(i: int, seed: int) -> VoteRow:
        label, prompt = (1 if i % 4 < 2 else -1), i % 2
        latent = tiny.noise(family, 1, seed + i)
        pair = 2 * (i // 4) + prompt
        return VoteRow(str(i), latent, prompts[prompt], negative, str(prompt), label, str(prompt), pair, cfg=cfg)

    rows, held = ([row(i, seed) for i in range(n)] for n, seed in ((number, OF_TRAINING), (held_out, OF_HELD_OUT)))
    return VoteSet(tuple(rows), tuple(held), tiny.conditioning(family, 33), f"{family} {number} {held_out}")


def trainer(family: str = "unet", model=None, votes: VoteSet | None = None, start=None, policy="", **settings):
    """A short training; `settings` of `Settings`."""
    settings = {"objective": KTO(100.0), "steps": 4, "window": 4, "batch": 4, "warm_up": 2, "rank": 4, **settings}
    model = tiny.model(family) if model is None else model
    return Trainer(model, vote_set(family) if votes is None else votes, Settings(**settings), start, policy)


def perturb(found: Trainer, size: float = 0.1) -> None:
    """As if much had been learned."""
    chance = torch.Generator().manual_seed(77)
    for product in found.adapters.products.values():
        product.up.data.copy_(size * torch.randn(product.up.shape, generator=chance))


def swapped(votes: VoteSet) -> VoteSet:
    return replace(votes, rows=tuple(replace(row, label=-row.label) for row in votes.rows))
