"""Trainings that end on time, whatever the machine: the schedule follows the clock."""

import math
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .flat import Flat

WARM_UP = 200  # steps
FALL = 0.3  # of the time: the learning rate falls linearly to zero
_EVERY = 20  # steps between looks at the clock; the device never waits for more


class Step:
    """A step of a training: loss, gradients, update. On CUDA it is captured once, and then replayed as one graph."""

    def __init__(self, loss_of: Callable[[], Tensor], flat: Flat):
        self.loss_of, self.flat = loss_of, flat
        self.loss = torch.zeros((), device=flat.master.device)  # running mean
        self.graph: torch.cuda.CUDAGraph | None = None

    def _step(self) -> None:
        loss = self.loss_of()
        loss.backward()
        self.flat.step()
        self.loss.lerp_(loss.detach().float(), (1 / self.flat.count).clamp(min=0.01))

    def capture(self) -> None:
        """After some steps on a stream of their own, in which libraries choose their kernels."""
        self.flat.rate.fill_(rate_at(0, 0.0))
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._step()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()
        self.graph = graph

    def __call__(self) -> None:
        if self.graph is None:
            self._step()
        else:
            self.graph.replay()


def rate_at(step: int, progress: float) -> float:
    """The learning rate as a share of its peak; `progress` goes from 0 to 1."""
    return max(0.0, min(1.0, (step + 1) / WARM_UP, (1 - progress) / FALL))


def train(
    step: Step,
    seconds: float,
    say: Callable[[str], None],
    keep: Mapping[float, Callable[[int], None]],
    steps: int | None = None,
) -> int:
    """Steps for so many seconds, or `steps` if they are fewer; how many there were.

    `keep`: what is called once, with the number of steps so far, when a share of the training is done.

    Raises:
        FloatingPointError: the loss is no number any more.
    """
    begun, done, progress, waiting = time.monotonic(), 0, 0.0, sorted(keep.items())
    told = begun
    while progress < 1:
        step.flat.rate.fill_(rate_at(done, progress))
        step()
        done += 1
        now = time.monotonic()
        if done % _EVERY == 0:
            if not math.isfinite(step.loss.item()):  # waits for the device, so that the clock is right
                raise FloatingPointError(f"the loss is {step.loss.item()} after {done} steps")
            now = time.monotonic()
        progress = max((now - begun) / seconds, done / steps if steps else 0.0)
        while waiting and progress >= waiting[0][0]:
            waiting.pop(0)[1](done)
        if now - told > max(2.0, seconds / 20) or progress >= 1:
            say(f"step {done:6d}  loss {step.loss.item():.5f}  {now - begun:6.1f} s")
            told = now
    return done
