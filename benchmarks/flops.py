"""What the nodes cost in operations, for networks of every family in real size: `python dev.py bench flops`.

The nodes are applied to the host's own networks and sampled with for one step; only that inside the networks all
tensors are without values (torch's meta device), so that no weights and no GPU are needed. Numbers are those of matrix
products, convolutions and attention, for one image or video.

    python -m guidekit.benchmarks.flops [flux wan ...]
"""

import logging
import sys
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..nodes.negtome import NegToMe
from ..nodes.pag import PAG
from ..nodes.seg import SEG
from ..nodes.slg import SLG
from . import FAMILIES as _  # noqa: F401  reads the command line before the host does
from ._networks import FULL, Network, build
from ._nodes import run_node
from ._table import print_row
from .device import PAIRS, acting_share, lora_on_negative

HEADER = (
    "| network | latent | prediction | PAG | SEG | SLG | NASA | NAG | NegToMe, 2 images | of a run "
    "| LoRA on the negative |"
)


def plain_attention(_backend, q: Tensor, k: Tensor, v: Tensor, heads: int, mask=None, **options) -> Tensor:
    """As matrix products, which are counted on every device."""
    if not options.get("skip_reshape"):
        q, k, v = (t.reshape(*t.shape[:2], heads, -1).transpose(1, 2) for t in (q, k, v))
    out = (q @ k.transpose(-1, -2)).softmax(-1) @ v
    return out if options.get("skip_output_reshape") else out.transpose(1, 2).flatten(2)


def _without_values(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to("meta")
    if isinstance(value, (list, tuple)):
        return type(value)(map(_without_values, value))
    return value


def _takes_no_values(_network: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """A hook before the network."""
    return _without_values(args), {name: _without_values(value) for name, value in kwargs.items()}


def _gives_zeros(_network: nn.Module, _args: tuple, out: Tensor) -> Tensor:
    """A hook behind it."""
    return torch.zeros(out.shape, dtype=out.dtype)


def without_weights(network: Network) -> ModelPatcher:
    """A MODEL whose weights take no memory, and are cast to the meta device where they are used."""
    cpu = torch.device("cpu")
    model = build(network, torch.device("meta"), torch.bfloat16, torch.float32)
    for module in model.model.diffusion_model.modules():
        for name, weight in module.named_parameters(recurse=False):
            shared = torch.zeros((), dtype=weight.dtype).expand(weight.shape)
            setattr(module, name, nn.Parameter(shared, requires_grad=False))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.zeros((), dtype=buffer.dtype).expand(buffer.shape))
    model.load_device = model.offload_device = cpu
    model.model_options["transformer_options"]["optimized_attention_override"] = plain_attention
    model.model.diffusion_model.register_forward_pre_hook(_takes_no_values, with_kwargs=True)
    model.model.diffusion_model.register_forward_hook(_gives_zeros)
    return model


def _added_product(_added, a: torch.Size, b: torch.Size, *_rest, **_more) -> int:
    """[n, k] times [k, m]."""
    return 2 * a[0] * a[1] * b[1]


def operations(network: Network, model: ModelPatcher, cfg: float = 1.0, batch: int = 1) -> int:
    """Floating-point operations of one step."""
    in_place = {torch.ops.aten.addmm_: _added_product}  # which torch does not count by itself
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        network.sample(model, cfg, 1, batch)
    return counter.get_total_flops()


def of_one(network: Network, model: ModelPatcher, plain: int, make) -> str:
    """A step with the node, in plain predictions; what is refused is left empty."""
    try:
        changed = make(network, model)
    except ValueError:
        return "-"
    return f"{operations(network, changed) / plain:.3f}"


def row(network: Network) -> str:
    model = without_weights(network)
    plain = operations(network, model)
    cells = [f"{plain / 1e12:.4g} TFLOP"]
    for node in (PAG, SEG, SLG):
        cells.append(of_one(network, model, plain, lambda _network, model, node=node: run_node(node, model=model)))
    cells += [of_one(network, model, plain, make) for make in PAIRS.values()]
    if len(network.latent) == 3 or network.latent[1] == 1:  # of videos there is rarely a batch
        merged = operations(network, run_node(NegToMe, model=model, steps="start to end"), batch=2) / (2 * plain)
        cells += [f"{merged:.4f}", f"{1 + acting_share(model) * (merged - 1):.4f}"]
    else:
        cells += ["-", "-"]
    cells.append(f"{operations(network, lora_on_negative(network, model), 4.0) / (2 * plain):.4f}")
    return f"| {network.name} | {network.size} | {' | '.join(cells)} |"


def main() -> None:
    logging.getLogger("guidekit").setLevel(logging.ERROR)
    print("A step without CFG and with the node, in predictions without it; LoRA on the negative: a step with CFG.\n")
    print(HEADER + "\n" + "|---" * (HEADER.count("|") - 1) + "|")
    with torch.inference_mode():
        for key in sys.argv[1:] or FULL:
            print_row(row(FULL[key]))


if __name__ == "__main__":
    main()
