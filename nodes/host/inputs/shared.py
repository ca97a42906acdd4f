"""Inputs that several nodes share."""

from comfy_api.latest import io

from ....samplers.guidance.weak_branch import RESCALE
from ..network.block_selection import TOOLTIP as BLOCKS_TOOLTIP
from ..run.ranges import Range


def scale_input(default: float) -> io.Float.Input:
    return io.Float.Input(
        "scale",
        default=default,
        min=0.0,
        max=100.0,
        step=0.1,
        round=0.001,
        tooltip="How far to go away from the weakened prediction, beside CFG: cfg + scale * (positive - weakened). "
        "0 is off and costs nothing.",
    )


def blocks_input() -> io.String.Input:
    return io.String.Input("blocks", default="", tooltip=BLOCKS_TOOLTIP)


def random_seed_input(tooltip: str) -> io.Int.Input:
    # Not "seed": the frontend would change it after every run.
    return io.Int.Input("random_seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, step=1, tooltip=tooltip, advanced=True)


def rescale_input() -> io.Combo.Input:
    return io.Combo.Input(
        "rescale",
        options=list(RESCALE),
        default="off",
        tooltip="Against contrast that grows with the scale, each sample by itself. partial: this guidance is made "
        "smaller by as much as it widens the positive prediction. full: the whole result, CFG included, gets the "
        "spread of the positive prediction.",
        advanced=True,
    )


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


class RangedNode(io.ComfyNode):
    """A node with `range_inputs`, which are checked when a prompt is queued."""

    @classmethod
    def validate_inputs(cls, start_percent, end_percent) -> bool | str:
        return validate_range(start_percent, end_percent)


def validate_range(start_percent: float | None, end_percent: float | None) -> bool | str:
    """For `validate_inputs`, which replaces the host's check of bounds for the inputs it names: True, or what is wrong.
    A linked input arrives as None and is checked when the node runs."""
    if start_percent is None or end_percent is None:
        return True
    try:
        Range(start_percent, end_percent)
    except ValueError as error:
        return str(error)
    return True
