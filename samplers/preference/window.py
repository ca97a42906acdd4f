"""Which votes a step of training takes, at which noise levels, with which noise: a function of (seed, step) alone, so
that a training that was stopped goes on as if it had not been, and so that several processes agree without a word."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

Levels = Literal["uniform", "middle"]
_MOST = 2**62


@dataclass(frozen=True)
class Draw:
    """`row`: of the votes; `level`: 0..1, the share of a schedule's training time, 1 being the most noise; `noise`: the
    seed of its noise; `empty`: without its prompt."""

    row: int
    level: float
    noise: int
    empty: bool


@dataclass(frozen=True)
class Plan:
    """Of all steps. `likes`, `dislikes`: rows; `pairs`: (better, worse), each two images with one noise; where there
    are pairs, only they are drawn. `size`: images of a step; `share`: of likes among them; `dropout`: of prompts."""

    seed: int
    size: int
    likes: Sequence[int] = ()
    dislikes: Sequence[int] = ()
    pairs: Sequence[tuple[int, int]] = ()
    share: float = 0.5
    dropout: float = 0.1
    levels: Levels = "uniform"
    first_level: float = 0.0
    last_level: float = 1.0

    def window(self, step: int) -> list[Draw]:
        """Every row of its kind comes once before one comes again; noise levels are spread evenly over a window."""
        chance = torch.Generator().manual_seed(_mixed(self.seed, step))
        if self.pairs:
            number = max(self.size // 2, 1)
            turns = self._turns(len(self.pairs), step * number, (step + 1) * number, 2)
            rows: list[tuple[int, ...]] = [self.pairs[i] for i in turns]
        else:
            number, rows = self.size, [(row,) for row in self._rows(step)]
        place = (torch.randperm(number, generator=chance) + torch.rand(number, generator=chance)) / number
        if self.levels == "middle":  # logit-normal (Esser et al. 2024)
            place = torch.special.ndtri(place.double().clamp(1e-6, 1 - 1e-6)).sigmoid()
        place = self.first_level + (self.last_level - self.first_level) * place.double()
        seeds = torch.randint(_MOST, (number,), generator=chance).tolist()
        empty = (torch.rand(number, generator=chance) < self.dropout).tolist()
        drawn = zip(rows, place.tolist(), seeds, empty)
        return [Draw(row, *rest) for together, *rest in drawn for row in together]

    def _rows(self, step: int) -> list[int]:
        share = self.share if self.likes and self.dislikes else float(not self.dislikes)
        before, after = (int(i * self.size * share + 1e-9) for i in (step, step + 1))  # likes drawn until then
        others = step * self.size - before, (step + 1) * self.size - after
        liked = [self.likes[i] for i in self._turns(len(self.likes), before, after, 0)]
        return liked + [self.dislikes[i] for i in self._turns(len(self.dislikes), *others, 1)]

    def _turns(self, rows: int, first: int, end: int, kind: int) -> list[int]:
        """Some of an endless row of numbers below `rows`, which are shuffled anew for each turn."""
        orders: dict[int, list[int]] = {}
        found = []
        for place in range(first, end):
            turn, i = divmod(place, rows)
            if turn not in orders:
                chance = torch.Generator().manual_seed(_mixed(self.seed, turn, 1 + kind))
                orders[turn] = torch.randperm(rows, generator=chance).tolist()
            found.append(orders[turn][i])
        return found


def _mixed(seed: int, *numbers: int) -> int:
    """A seed for each combination of numbers."""
    for number in numbers:
        seed = (seed * 6364136223846793005 + number * 1442695040888963407 + 1013904223) % 2**64
        seed ^= seed >> 29
    return seed % _MOST


def warm_up(step: int, steps: int) -> float:
    """Share of the learning rate in a step, counted from 0."""
    return min(1.0, (step + 1) / steps) if steps else 1.0
