"""The gradient of a window of votes, some images at a time.

What an image's loss is in a `Windowed` objective depends on all gains of the window. So first the gains are found
without a gradient; from them come the slopes, which are numbers; then each part goes through the tuned model once more,
with the same noise, and its errors are multiplied by their slopes. The gradient is that of the whole window at once,
the memory that of one part. Where all is one part nothing is evaluated twice.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .errors import mean_square
from .objectives import Objective, Single


@dataclass(frozen=True)
class Part:
    """Images that go through the network together. `target`: what the output should have been for them, [B, ...];
    `liked`, `weight` [B]; `places`: theirs in the window, [B]; `given`: what the model knows them by."""

    target: Tensor
    liked: Tensor
    weight: Tensor
    places: Tensor
    given: Any = None
    old: Tensor | None = None  # the reference's output, where it is known already


class Model(Protocol):
    """Outputs of the network, [B, ...], for the noised images of a part."""

    def tuned(self, part: Part) -> Tensor: ...

    def reference(self, part: Part) -> Tensor: ...


@dataclass(frozen=True)
class Seen:
    """Of the votes of a window, [n]; gains are NaN where nobody asked the reference."""

    loss: Tensor
    gain: Tensor
    liked: Tensor


def itself(values: Tensor) -> Tensor:
    return values


def nothing() -> None:
    pass


def accumulate(
    objective: Objective,
    model: Model,
    parts: Sequence[Part],
    size: int,
    exchange: Callable[[Tensor], Tensor] = itself,
    collect: Callable[[], None] = nothing,
) -> Seen:
    """Adds the gradient of the mean loss of a window of `size` votes to the parameters of `model`.

    `parts` may be some of a window, the others being other processes'; then `exchange` adds up, over all processes, a
    vector in which each has filled its places, and gradients are still to be added up. `collect` is called after the
    gradient of each part.
    """
    if isinstance(objective, Single):
        return _one_by_one(objective, model, parts, size, exchange, collect)
    liked, weight = _spread(parts, "liked", size, exchange).bool(), _spread(parts, "weight", size, exchange)
    whole = len(parts) == 1
    gain, kept = torch.zeros_like(weight), None
    for part in parts:
        with nullcontext() if whole else torch.no_grad():
            error = mean_square(model.tuned(part), part.target)
        kept = error if whole else None
        gain[part.places] = (mean_square(_old(model, part), part.target) - error.detach()).to(gain)
    gain = exchange(gain)
    slopes = objective.slopes(gain, liked) * weight / size
    for part in parts:
        error = mean_square(model.tuned(part), part.target) if kept is None else kept
        (slopes[part.places].to(error) * error).sum().backward()
        collect()
    return Seen(objective.losses(gain, liked), gain, liked)


def _one_by_one(
    objective: Single,
    model: Model,
    parts: Sequence[Part],
    size: int,
    exchange: Callable[[Tensor], Tensor],
    collect: Callable[[], None],
) -> Seen:
    liked = _spread(parts, "liked", size, exchange).bool()
    loss, gain = torch.zeros(size), torch.zeros(size)
    for part in parts:
        old = _old(model, part) if objective.compares else None
        prediction = model.tuned(part)
        losses = objective.losses(prediction, old, part.target, part.liked)
        (losses * part.weight.to(losses)).sum().div(size).backward()
        collect()
        loss[part.places] = losses.detach().to(loss)
        known = torch.full((len(part.places),), torch.nan)
        if old is not None:
            known = mean_square(old, part.target) - mean_square(prediction.detach(), part.target)
        gain[part.places] = known.to(gain)
    return Seen(exchange(loss), exchange(gain), liked)


@torch.no_grad()
def _old(model: Model, part: Part) -> Tensor:
    return model.reference(part) if part.old is None else part.old


def _spread(parts: Sequence[Part], name: str, size: int, exchange: Callable[[Tensor], Tensor]) -> Tensor:
    """A value of the parts, in the places of the window."""
    found = torch.zeros(size)
    for part in parts:
        found[part.places] = getattr(part, name).to(found)
    return exchange(found)
