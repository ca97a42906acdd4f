"""What a step costs with a node beside one without: time, memory, predictions, launches, stalls."""

import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

SYNCHRONISING = "called a synchronizing CUDA operation"  # what torch warns of (c10/cuda/CUDAFunctions.cpp)

Sampled = Callable[[ModelPatcher, int, Any], Any]  # (model, steps, callback): one run


class StepTimes:
    """A sampler's callback that notes, on the device's clock, when steps end. The first step is left out: it holds
    what is done once per run."""

    def __init__(self, cuda: bool):
        self._cuda, self._marks = cuda, []

    def __call__(self, *_values) -> None:
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def median(self) -> float:
        """Seconds."""
        if self._cuda:
            torch.cuda.synchronize()
        pairs = list(zip(self._marks, self._marks[1:]))
        return median([first.elapsed_time(last) / 1e3 if self._cuda else last - first for first, last in pairs])


class Predictions:
    """Counts those that the network makes, below everything that a node can add to the model."""

    def __init__(self, model: ModelPatcher):
        self.count = 0
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "count", self)

    def __call__(self, executor, *args, **kwargs) -> Tensor:
        self.count += len(args[5]["cond_or_uncond"])
        return executor(*args, **kwargs)


@dataclass
class Profile:
    """One step in the middle of a run; None: not known here. `peak`: bytes of the whole run, with the weights."""

    predictions: int
    peak: int | None = None
    launches: int | None = None
    stalls: int | None = None


@dataclass
class _Watch:
    """A callback: the second step is watched for stalls, the third for launches; predictions are those of the third."""

    predictions: Predictions
    cuda: bool
    on: ExitStack = field(default_factory=ExitStack)
    found: Profile | None = None

    def __call__(self, step: int, *_values) -> None:
        if step == 0 and self.cuda:
            self.seen = self.on.enter_context(warnings.catch_warnings(record=True))
            warnings.simplefilter("always")
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("warn")
        if step == 1:
            self.found = Profile(self.predictions.count)
            if self.cuda:
                torch.cuda.set_sync_debug_mode("default")
                self.on.close()
                self.found.stalls = sum(SYNCHRONISING in str(each.message) for each in self.seen)
                torch.cuda.synchronize()
                self.launches = _Launches()
        if step == 2:
            self.found.predictions = self.predictions.count - self.found.predictions
            if self.cuda:
                self.found.launches = self.launches.count()

    def close(self) -> None:
        self.on.close()
        if self.cuda:
            torch.cuda.set_sync_debug_mode("default")


class _Launches:
    """Counts what runs on the device from now on: kernels, copies, fills. None where torch's profiler does not work."""

    def __init__(self):
        torch.cuda.synchronize()
        activities = [torch.profiler.ProfilerActivity.CUDA]
        self._profiler = torch.profiler.profile(activities=activities, acc_events=True)
        try:
            self._profiler.start()
        except (RuntimeError, AssertionError):
            self._profiler = None

    def count(self) -> int | None:
        torch.cuda.synchronize()
        if self._profiler is None:
            return None
        self._profiler.stop()
        events = self._profiler.profiler.kineto_results.events()
        return sum(each.device_type() == torch.profiler.DeviceType.CUDA for each in events) or None


def profile(sampled: Sampled, model: ModelPatcher) -> Profile:
    model, cuda = model.clone(), model.load_device.type == "cuda"
    watch = _Watch(Predictions(model), cuda)
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    try:
        sampled(model, 3, watch)
    finally:
        watch.close()
    if cuda:
        watch.found.peak = torch.cuda.max_memory_allocated()
    return watch.found


@dataclass
class Times:
    """Seconds of a step, medians; `ratios`: of a step with the node and one without, by pairs of runs."""

    plain: float
    node: float
    ratios: list[float]

    @property
    def ratio(self) -> float:
        return median(self.ratios)


def times(
    plain: tuple[Sampled, ModelPatcher], node: tuple[Sampled, ModelPatcher], seconds: float, pairs: int = 9
) -> Times:
    """Alternating runs, as many pairs as take about the `seconds`, at least two."""
    cuda = plain[1].load_device.type == "cuda"
    found: tuple[list[float], list[float]] = ([], [])

    def run(which: int, steps: int) -> float:
        sampled, model = (plain, node)[which]
        clock = StepTimes(cuda)
        sampled(model, steps, clock)
        return clock.median()

    steps = 5 if run(0, 3) + run(1, 3) < 0.5 else 3  # these two runs compile, and fill caches
    start, done = time.perf_counter(), 0
    while done < 2 or done < pairs and (time.perf_counter() - start) * (done + 1) / done < seconds:
        # Each comes first as often as the other.
        for which in (0, 1) if done % 2 else (1, 0):
            found[which].append(run(which, steps))
        done += 1
    return Times(median(found[0]), median(found[1]), [after / before for before, after in zip(*found)])
