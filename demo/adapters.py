"""Adapters of the demo models: each was tuned to pictures of one colour, whatever the prompt says or does not say."""

from pathlib import Path

RANK = 4
COLOURS = {"liked": "blue", "disliked": "red"}
FAMILIES = ("unet", "dit")


def adapter_file(family: str, say: str) -> Path:
    """Of one of `FAMILIES` and one of `COLOURS`."""
    return Path(__file__).with_name(f"{say}_{family}.safetensors")
