"""Inputs that several nodes share: those of nodes that show images, and of nodes that choose votes."""

import time

from comfy_api.latest import io

from .filters import Filter, beginning_of, end_of
from .opened import store

HIDDEN = [io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id]
_DAY = 24 * 3600.0


def shown_inputs(what: str, *before: io.Input) -> list[io.Input]:
    """`what`: what the images are for; `before`: further inputs, before the optional ones."""
    return [
        io.Image.Input("images", tooltip=f"The {what}."),
        *before,
        io.String.Input("tag", default="", tooltip="A word to find them by again, if wanted."),
        io.Latent.Input(
            "samples",
            optional=True,
            tooltip="The latent that the images were decoded from: the sampler's. Without it training needs the VAE.",
        ),
        io.Model.Input(
            "model",
            optional=True,
            tooltip="The model that the sampler used, so that votes of different models and LoRAs can be told apart.",
        ),
        io.Conditioning.Input(
            "positive", optional=True, tooltip="The sampler's positive. Without it training needs the CLIP."
        ),
        io.Conditioning.Input("negative", optional=True, tooltip="The sampler's negative."),
    ]


def filter_inputs() -> list[io.Input]:
    return [
        io.String.Input("tag", default="", tooltip="Only votes with this tag; empty: all."),
        io.String.Input("model_name", default="", tooltip="Only images of models whose file name has this in it."),
        io.String.Input("lora_name", default="", tooltip="Only images of LoRAs whose file name has this in it."),
        io.Float.Input(
            "last_days",
            default=0.0,
            min=0.0,
            max=36500.0,
            step=1.0,
            round=0.001,
            tooltip="Only votes of the last so many days; 0: all.",
            advanced=True,
        ),
        io.String.Input(
            "from_date",
            default="",
            tooltip="Only votes of this day and later, such as 2026-03-01; empty: all.",
            advanced=True,
        ),
        io.String.Input(
            "to_date", default="", tooltip="Only votes of this day and earlier; empty: all.", advanced=True
        ),
    ]


def after_input() -> io.Input:
    return io.AnyType.Input(
        "after",
        optional=True,
        tooltip="Anything that shall come first, such as the report of Vote by Rule in the same workflow.",
    )


def filter_from(
    tag: str | None = None,
    model_name: str | None = None,
    lora_name: str | None = None,
    last_days: float | None = None,
    from_date: str | None = None,
    to_date: str | None = None,
) -> Filter:
    """A filter among the likes and dislikes. Linked inputs are None before a workflow runs, and then accept any.

    Raises:
        ValueError: a date is none.
    """
    since = [time.time() - _DAY * last_days] if last_days else []
    if (begin := beginning_of(from_date or "", "from_date")) is not None:
        since.append(begin)
    return Filter(
        "decided",
        model=(model_name or "").strip(),
        lora=(lora_name or "").strip(),
        tag=(tag or "").strip(),
        since=max(since, default=None),
        until=end_of(to_date or "", "to_date"),
    )


class ChoosesVotes(io.ComfyNode):
    """A node with `filter_inputs`, whose dates are checked when a prompt is queued."""

    @classmethod
    def fingerprint_inputs(
        cls, tag=None, model_name=None, lora_name=None, last_days=None, from_date=None, to_date=None, **_
    ) -> str:
        """Other votes are another input."""
        return store().fingerprint(filter_from(tag, model_name, lora_name, last_days, from_date, to_date))

    @classmethod
    def validate_inputs(cls, from_date=None, to_date=None) -> bool | str:
        try:  # a linked input is None, and checked when the node runs
            filter_from(from_date=from_date, to_date=to_date)
        except ValueError as error:
            return str(error)
        return True
