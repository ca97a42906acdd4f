"""Adapters of the demo models: each was tuned to images of one colour and material, whatever the prompt says or does
not say."""

from pathlib import Path

from .models import weights_file

RANK = 4
TASTES = {"liked": ("blue", "metal"), "disliked": ("red", "matte")}


def adapter_file(family: str, taste: str) -> Path:
    """The weights file of a model family and one of `TASTES`."""
    return weights_file(f"{taste}_{family}")
