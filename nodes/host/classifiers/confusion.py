"""A classifier applied to the denoised estimates of a run: which wrong candidate each image resembles, and how much."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ....samplers.guidance.gfcg import confusion, most_confusing, probabilities
from ..run import Run
from .decode import Decoder
from .labels import Logits


@dataclass(frozen=True)
class Verdict:
    """The classification of a batch, on the CPU. `p`: probabilities [B, candidates], the target first; `reference` [B]:
    the number of the most confusing wrong candidate; `confusion` [B]: 0..1."""

    p: Tensor
    reference: Tensor
    confusion: Tensor

    def chosen(self, threshold: float) -> list[int]:
        """The reference of each image, 0 where its confusion is at most `threshold`."""
        return [k if c > threshold else 0 for k, c in zip(self.reference.tolist(), self.confusion.tolist())]


@dataclass(frozen=True, eq=False)
class Confusion:
    """The verdict on denoised estimates [B, C, ...] in the sampler's scale. `measure`, `temperature`: see
    samplers/guidance/gfcg.py; `interval`: the classifier runs every `interval` steps, its last result is reused in
    between."""

    logits: Logits
    decoder: Decoder
    measure: str
    temperature: float
    interval: int

    def __call__(self, run: Run, denoised: Tensor) -> Verdict:
        if self.interval == 1:
            return self._ask(run, denoised)
        memory = run.memory(self)
        last: tuple[int, Verdict] | None = memory.read()  # the step in which the classifier ran, and its verdict
        if last is None or run.step - last[0] >= self.interval:
            last = run.step, self._ask(run, denoised)
        memory.write(last)
        return last[1]

    def _ask(self, run: Run, denoised: Tensor) -> Verdict:
        with torch.no_grad():
            logits = self.logits(self.decoder(run, denoised)).cpu()
        run.notes[self] = run.notes.get(self, 0) + 1
        return verdict(probabilities(logits, self.temperature), self.measure, most_confusing(logits))

    def asked(self, run: Run) -> int:
        """How many times the classifier has run so far."""
        return run.notes.get(self, 0)


def verdict(p: Tensor, measure: str, reference: Tensor) -> Verdict:
    """The verdict for probabilities `p` [B, candidates], with `reference` [B] as the wrong candidate of each image."""
    return Verdict(p, reference, confusion(p, reference, measure))
