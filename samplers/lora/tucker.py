"""Converts adapters of convolutions from Tucker form to two factors.

LoCon, LoHa and LoKr (Yeh et al., ICLR 2024, arXiv 2309.14859) can have a change of a convolution as a core t [rank,
rank, height, width] between factors of outputs and inputs: sum_ij a_i t_ij b_j. The sum over j is the usual second
factor, [rank, inputs x height x width].
"""

from collections.abc import Mapping

import torch
from torch import Tensor

# The core, the factor of the inputs, and that of the outputs if it is transposed (rank first) where there is a core.
_CORES = (
    ("lora_mid.weight", "lora_down.weight", None),
    ("hada_t1", "hada_w1_b", "hada_w1_a"),
    ("hada_t2", "hada_w2_b", "hada_w2_a"),
    ("lokr_t2", "lokr_w2_b", "lokr_w2_a"),
)


def without_cores(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parts of the same adapter without cores; factors that were computed are in float32."""
    found = dict(parts)
    for core, inputs, outputs in _CORES:
        if core in found:
            folded = torch.einsum("ij...,jn->in...", found.pop(core).float(), found[inputs].flatten(1).float())
            found[inputs] = folded if outputs is None else folded.flatten(1)
            if outputs is not None:
                found[outputs] = found[outputs].T.contiguous()
    return found
