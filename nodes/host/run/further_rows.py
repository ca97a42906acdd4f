"""Samplers in which a network call holds the positive's rows and nothing else.

Relies on: `sample_ar_video` (comfy/k_diffusion/sampling.py:1845) making caches of keys and values for as many rows as
the latent has, which the network fills in every call.
"""

from typing import Any

from .run import Run

_POSITIVE_ALONE = {"sample_ar_video": "ar_video"}


def check_further_rows(run: Run, technique: Any) -> None:
    """Raises ValueError where `technique`, which has another prediction evaluated beside the positive's, cannot."""
    name = _POSITIVE_ALONE.get(run.sampler_name)
    if name is not None:
        raise ValueError(
            f"The sampler {name} keeps what the network has computed of earlier frames for one prediction, and "
            f"{technique.label} has another one evaluated. Take the node off the model, or use a sampler that samples "
            "the whole video at once."
        )
