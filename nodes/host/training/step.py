"""The images of one step of training, and the outputs of the tuned model and of the reference for them."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from ....samplers.preference.replay import Part
from ....samplers.preference.window import Draw
from ..votes.vote_set import VoteRow
from .adapters import REFERENCE, Adapters
from .in_place import InPlace
from .session import Session, together


@dataclass(frozen=True, eq=False)
class Noised:
    """What a part's images are known by: noised latents, and a prompt for each."""

    x: Tensor
    sigma: Tensor
    prompts: list[list[dict]]


@dataclass(frozen=True, eq=False)
class Tuning:
    """A model in a session, with products: the outputs of `samplers.preference.replay.Model`. Without products it is
    what it is, and its own reference."""

    session: Session
    adapters: Adapters | None = None
    in_place: InPlace = field(default_factory=InPlace)

    def tuned(self, part: Part) -> Tensor:
        output = partial(self._output, part.given, part.given.prompts)
        return self.in_place(output) if torch.is_grad_enabled() else output()

    @torch.no_grad()
    def reference(self, part: Part) -> Tensor:
        with self._as_reference():
            return self._output(part.given, part.given.prompts)

    @torch.no_grad()
    def guided_away(self, noised: Noised, old: Tensor, negatives: list[list[dict]], cfg: Tensor) -> Tensor:
        """By how much the reference with guidance at each image's scale differs from that without, `old`."""
        with self._as_reference():
            negative = self._output(noised, negatives)
        return (cfg - 1).reshape(-1, *[1] * (negative.ndim - 1)) * (old - negative)

    def _as_reference(self) -> AbstractContextManager:
        return nullcontext() if self.adapters is None else self.adapters.at(REFERENCE)

    def _output(self, noised: Noised, prompts: list[list[dict]]) -> Tensor:
        return self.session.output(prompts, noised.x, noised.sigma)


def noise_of(seed: int, shape: tuple[int, ...]) -> Tensor:
    """The same on every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True, eq=False)
class Images:
    """The votes of a training in a session. `weights`: of each vote; `batch`: how many go through the network at once;
    `guided`: see `parts`."""

    votes: Sequence[VoteRow]
    empty: list | None
    weights: Sequence[float]
    batch: int = 1
    guided: bool = False

    def groups(self, session: Session, window: Sequence[Draw]) -> list[list[int]]:
        """Places of a window that go together: as many as `batch`, of one shape, whose prompts fit into one."""
        found: list[list[int]] = []
        open_ones: dict[tuple, list[int]] = {}
        for place, draw in enumerate(window):
            vote = self.votes[draw.row]
            key = vote.latent.shape, bool(self._guidance(session, [draw]))
            group = open_ones.get(key)
            if group is None or len(group) >= self.batch or not self._fits(session, window, (group[0], place)):
                group = open_ones[key] = []
                found.append(group)
            group.append(place)
        return found

    def part(self, tuning: Tuning, window: Sequence[Draw], places: Sequence[int]) -> Part:
        """Images noised to their levels.

        Guidance: an image that was made at cfg > 1 is a sample of the guided prediction, no sample of the model. With
        `guided`, what sets the two apart is taken off what its noise should have been predicted as, so that what is
        learned is what sets the image apart from others of its making, and not guidance.
        """
        session, draws = tuning.session, [window[place] for place in places]
        votes = [self.votes[draw.row] for draw in draws]
        x0 = session.enter(torch.cat([vote.latent for vote in votes]))
        noise = torch.cat([noise_of(draw.noise, tuple(vote.latent.shape)) for draw, vote in zip(draws, votes)]).to(x0)
        sigma = torch.tensor([session.sigma(draw.level) for draw in draws], device=x0.device)
        x, target = session.noised(x0, noise, sigma)
        part = Part(
            target,
            torch.tensor([vote.label > 0 for vote in votes], device=x0.device),
            torch.tensor([self.weights[draw.row] for draw in draws], device=x0.device),
            torch.tensor(places),
            Noised(x, sigma, self._prompts(session, draws)),
        )
        guidance = self._guidance(session, draws)
        if not guidance:
            return part
        old, cfg = tuning.reference(part), torch.tensor([scale for _, scale in guidance], device=x0.device)
        away = tuning.guided_away(part.given, old, [negative for negative, _ in guidance], cfg)
        return replace(part, target=part.target - away, old=old)

    def _guidance(self, session: Session, draws: Sequence[Draw]) -> list[tuple[list[dict], float]]:
        """(negative prompt, scale) of the images from which guidance is to be taken out."""
        votes = [self.votes[draw.row] for draw in draws if self.guided and not draw.empty]
        return [
            (session.prompt(vote.negative, tuple(vote.latent.shape)), vote.cfg)
            for vote in votes
            if vote.negative is not None and vote.cfg is not None and vote.cfg != 1
        ]

    def _prompts(self, session: Session, draws: Sequence[Draw]) -> list[list[dict]]:
        found = []
        for draw in draws:
            vote = self.votes[draw.row]
            prompt = self.empty if draw.empty and self.empty is not None else vote.positive
            found.append(session.prompt(prompt, tuple(vote.latent.shape)))
        return found

    def _fits(self, session: Session, window: Sequence[Draw], places: Sequence[int]) -> bool:
        draws = [window[place] for place in places]
        if together(self._prompts(session, draws)) is None:
            return False
        negatives = [negative for negative, _ in self._guidance(session, draws)]
        return not negatives or together(negatives) is not None
