"""Comparable times: several functions are measured in turns, in one run."""

import time
from collections.abc import Callable

ROUNDS = 5


def medians(things: dict[str, Callable[[], object]]) -> dict[str, float]:
    """The median seconds of each over some rounds, after one round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in things}
    for _round in range(ROUNDS + 1):
        for name, thing in things.items():
            start = time.perf_counter()
            thing()
            times[name].append(time.perf_counter() - start)
    return {name: sorted(each[1:])[ROUNDS // 2] for name, each in times.items()}
