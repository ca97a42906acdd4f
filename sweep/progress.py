"""How far a sweep is: rates, the time left, and what each server does."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .text import cut, plain

_WINDOW = 60  # seconds over which the rate is measured


@dataclass(frozen=True)
class Progress:
    """`rate` in jobs per second and `left` in seconds, None until something has ended; `doing`: by server, what
    runs."""

    done: int
    failed: int
    count: int
    rate: float | None
    left: float | None
    doing: Mapping[str, str]

    def __str__(self) -> str:
        parts = [f"{self.done}/{self.count} done"]
        if self.failed:
            parts.append(f"{self.failed} failed")
        if self.rate:
            parts.append(f"{self.rate:.1f}/s" if self.rate >= 1 else f"{1 / self.rate:.1f} s each")
        if self.left:
            parts.append(f"{duration(self.left)} left")
        busy = "; ".join(f"{server}: {cut(plain(what), 60)}" for server, what in self.doing.items() if what)
        return ", ".join(parts) + (f" [{busy}]" if busy else "")


OnProgress = Callable[[Progress], None]


class Pace:
    """The rate over the last minute, from how many jobs have ended."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int]] = deque()

    def progress(self, counts: Mapping[str, int], doing: Mapping[str, str]) -> Progress:
        now, ended = time.monotonic(), counts["done"] + counts["failed"]
        self._marks.append((now, ended))
        while len(self._marks) > 2 and now - self._marks[1][0] > _WINDOW:
            self._marks.popleft()
        since, before = self._marks[0]
        rate = (ended - before) / (now - since) if now > since and ended > before else None
        count = sum(counts.values())
        left = (count - ended) / rate if rate else None
        return Progress(counts["done"], counts["failed"], count, rate, left, doing)


def duration(seconds: float) -> str:
    """3:07, or 2:03:07."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
