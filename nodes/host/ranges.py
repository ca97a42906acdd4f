"""Start and end of a technique within a run, one meaning for every node.

Relies on: `percent_to_sigma` of the model's sampling object (comfy/model_sampling.py:211,260,321,372,414), where 0 is
at or above the largest sigma and 1 is 0.
"""

from dataclasses import dataclass

from comfy_api.latest import io

from .run import Run


def above(sigma: float, limit: float) -> bool:
    """sigma > limit, with the two taken for equal where they are up to rounding: schedules are in float32."""
    return sigma > limit * (1 + 1e-6)


@dataclass(frozen=True)
class Range:
    """Active where sigma(end) < sigma <= sigma(start), sigma being the one at which the outer step begins
    (Kynkäänniemi et al. 2024, arXiv 2404.07724): all evaluations of a step agree."""

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
        return self.contains(run.step_sigma, run)

    def contains(self, sigma: float, run: Run) -> bool:
        start, end = (run.sigma_at(percent) for percent in (self.start_percent, self.end_percent))  # both in step 0
        return (self.start_percent <= 0 or not above(sigma, start)) and above(sigma, end)


def range_inputs() -> list:
    """The two inputs of a node that can be limited; always the last ones."""
    return [
        io.Float.Input(
            "start_percent",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.001,
            tooltip="Start of the active part of sampling: 0 is the first step, 1 the last.",
            advanced=True,
        ),
        io.Float.Input(
            "end_percent",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.001,
            tooltip="End of the active part. A step counts by the noise level at which it begins.",
            advanced=True,
        ),
    ]


def validate_range(start_percent: float | None, end_percent: float | None) -> bool | str:
    """For `validate_inputs`, which takes over the host's own bounds for what it names. A linked input arrives as None
    and is checked when the node runs."""
    if start_percent is None or end_percent is None:
        return True
    try:
        Range(start_percent, end_percent)
    except ValueError as error:
        return str(error)
    return True
