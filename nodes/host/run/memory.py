"""Values that techniques keep from step to step."""

import math
from typing import TYPE_CHECKING, Any

from .clock import TOLERANCE

if TYPE_CHECKING:
    from .run import Run


class StepMemory:
    """One value carried from outer step to outer step.

    Every evaluation of a step reads the value that the previous step wrote; only the first write in a step counts. The
    value is dropped when sigma changes direction.
    """

    def __init__(self, run: "Run"):
        self._run = run
        self._step: int | None = None
        self._sigma = math.inf
        self._before = self._after = None
        self._written = False

    def read(self) -> Any:
        """The value from the previous step; None in the first one."""
        run = self._run
        if run.step != self._step:
            turned = run.step_sigma > self._sigma * (1 + TOLERANCE) if run.descending else run.step_sigma < self._sigma
            self._before = None if turned else self._after
            self._step, self._sigma, self._written = run.step, run.step_sigma, False
        return self._before

    def write(self, value: Any) -> None:
        """Sets the value for the next step; only the first call in a step has an effect."""
        if not self._written:
            self._after, self._written = value, True
