"""A separate prompt for the first row of a batch.

Relies on: `original_conds` of a guider (comfy/samplers.py:1189), whose tensors are repeated along the batch where they
have fewer rows, and belong to its rows one by one where they have as many (comfy/conds.py, repeat_to_batch_size).
"""

import copy

import torch
from torch import Tensor

_PROMPT = ("cross_attn", "pooled_output", "attention_mask", "t5xxl_ids", "t5xxl_weights")


def with_first_prompt(guider, conditioning: list):
    """A copy of the guider whose positive prompts are `conditioning` for the first row of a batch of two; areas,
    control and other options of the guider's prompts stay in both rows.

    Raises:
        ValueError: `conditioning` is not one prompt, or does not have the shapes of the guider's.
    """
    if len(conditioning) != 1:
        raise ValueError(f"The source prompt has {len(conditioning)} parts (combined prompts). Give one.")
    tokens, options = conditioning[0]
    first = {"cross_attn": tokens, **options}
    found = copy.copy(guider)
    found.original_conds = {
        name: entries if "negative" in name else [_joined(first, entry) for entry in entries]
        for name, entries in guider.original_conds.items()
    }
    return found


def _joined(first: dict, entry: dict) -> dict:
    rows = {}
    for name in _PROMPT:
        a, b = first.get(name), entry.get(name)
        if not isinstance(a, Tensor) and not isinstance(b, Tensor):
            continue
        if not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.shape != b.shape or len(a) != 1:
            shapes = (tuple(x.shape) if isinstance(x, Tensor) else "none" for x in (a, b))
            raise ValueError(
                "The source prompt and the guider's do not fit into one batch: {} is {} and {}. Make both with the "
                "same text encoder, and of one length.".format(name, *shapes)
            )
        if not torch.equal(a, b):
            rows[name] = torch.cat([a, b])
    return {**entry, **rows}
