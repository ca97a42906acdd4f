"""Start and end of a technique within a run, with the same meaning in every node.

Relies on: `percent_to_sigma` of the model's sampling object (comfy/model_sampling.py:211,260,321,372,414), which gives
the largest sigma, or a greater number, at 0, and 0 at 1.
"""

from dataclasses import dataclass

from .run import Run


def above(sigma: float, limit: float) -> bool:
    """sigma > limit, where the two count as equal within rounding: schedules are in float32."""
    return sigma > limit * (1 + 1e-6)


@dataclass(frozen=True)
class Range:
    """Active where sigma(end) < sigma <= sigma(start), with the sigma at which the outer step begins (Kynkäänniemi et
    al. 2024, arXiv 2404.07724), so that all evaluations of a step agree.

    Raises:
        ValueError: limits outside 0..1, or a start that is not below the end.
    """

    start_percent: float = 0.0
    end_percent: float = 1.0

    def __post_init__(self):
        start, end = self.start_percent, self.end_percent
        if not (0 <= start <= 1 and 0 <= end <= 1):
            raise ValueError(f"start_percent is {start:g} and end_percent {end:g}. Both lie between 0 and 1.")
        if start >= end:
            raise ValueError(
                f"start_percent is {start:g} and end_percent {end:g}: nothing lies between them. "
                "Set start_percent below end_percent."
            )

    def active(self, run: Run) -> bool:
        """Whether the current outer step lies in the range."""
        return self.contains(run.step_sigma, run)

    def contains(self, sigma: float, run: Run) -> bool:
        """Whether a step that begins at `sigma` lies in the range."""
        start, end = (run.sigma_at(percent) for percent in (self.start_percent, self.end_percent))  # both in step 0
        return (self.start_percent <= 0 or not above(sigma, start)) and above(sigma, end)
