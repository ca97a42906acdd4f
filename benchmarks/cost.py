"""What the nodes that work inside the network cost, in floating-point operations: `python dev.py bench cost`.

Weak branches, on UNets of the size of SD1.5 and SDXL without weights: what is evaluated from the middle block on. That
a weak prediction takes this much and no more is for tests/host/test_weak_branch.py. Negative prompts in attention,
through the host, on networks of the shape of SD1.5, Flux and Wan with a fifth to an eighth of channels and tokens:
the shares of layers (channels squared times tokens) and attention (channels times tokens squared) are as in the large
ones.
"""

import re
from itertools import product

import comfy.ops
import comfy.sample
import comfy.supported_models
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..nodes.nasa import METHODS, NASA
from ..nodes.negtome import APPLY_TO, GIVEN, STEPS, NegToMe
from . import FAMILIES, _networks
from ._demo import Demo
from ._networks import SD15, SDXL
from ._nodes import run_node
from ._steps import Predictions
from ._table import print_row

FLUX = {
    **_networks.FLUX,
    "hidden_size": 3072 // 4,
    "num_heads": 24 // 4,
    "depth": 1,
    "depth_single_blocks": 2,
    "context_in_dim": 4096 // 4,
    "vec_in_dim": 768 // 4,
}

WAN = {
    **_networks.WAN_14B,
    "dim": 5120 // 8,
    "ffn_dim": 13824 // 8,
    "num_heads": 40 // 8,
    "num_layers": 2,
    "text_dim": 4096 // 8,
}


def _plain_attention(_backend, q: Tensor, k: Tensor, v: Tensor, heads: int, **_options) -> Tensor:
    """As matrix products, which are counted on every device."""
    q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    return ((q @ k.transpose(-1, -2)).softmax(-1) @ v).transpose(1, 2).flatten(2)


def weak_shares(network: dict, side: int) -> tuple[float, float]:
    """Cost of PAG and SEG at the middle block, relative to a whole evaluation of a latent of `side` x `side`."""
    unet = UNetModel(**network, dtype=torch.float32, device="meta", operations=comfy.ops.disable_weight_init)
    latent, text = (torch.zeros(1, *shape, device="meta") for shape in ((4, side, side), (77, network["context_dim"])))
    pooled = torch.zeros(1, network.get("adm_in_channels", 0), device="meta") if "adm_in_channels" in network else None
    options = {"optimized_attention_override": _plain_attention}
    with FlopCounterMode(display=False) as counter:
        unet(latent, torch.zeros(1, device="meta"), context=text, y=pooled, transformer_options=options)
    counts = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    before = sum(count for name, count in counts.items() if re.fullmatch(r"UNetModel\.input_blocks\.\d+\.\d+", name))
    tokens = (side // 2 ** (len(network["channel_mult"]) - 1)) ** 2
    channels = network["model_channels"] * network["channel_mult"][-1]
    maps = network["transformer_depth_middle"] * 4 * tokens**2 * channels  # q k^T and its product with v
    rest = counts["Global"] - before
    return (rest - maps) / counts["Global"], rest / counts["Global"]


def step_flops(model: ModelPatcher, latent: Tensor, prompt: list) -> int:
    """Floating-point operations of one step without CFG."""
    settings = (1, 1.0, "euler", "simple", prompt, prompt, torch.zeros_like(latent))
    with FlopCounterMode(display=False) as counter:
        comfy.sample.sample(model, torch.zeros_like(latent), *settings, seed=0, disable_pbar=True)
    return counter.get_total_flops()


def without_weights(config) -> ModelPatcher:
    """A MODEL of one of the host's configurations."""
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "")
    for parameter in model.diffusion_model.parameters():
        parameter.data.zero_()
    return ModelPatcher(model.eval(), load_device=torch.device("cpu"), offload_device=torch.device("cpu"))


def unet() -> ModelPatcher:
    """SD1.5 with a fifth of its channels."""
    return without_weights(comfy.supported_models.SD15({**SD15, "model_channels": 64, "context_dim": 152}))


def flux() -> ModelPatcher:
    """A few blocks of Flux with a quarter of their channels."""
    return without_weights(comfy.supported_models.Flux(dict(FLUX)))


def text_costs(model: ModelPatcher, latent: Tensor, text: Tensor) -> tuple[float, float]:
    """Cost of a prediction with NASA and with NAG, in plain predictions."""
    prompt = [[text, {"pooled_output": torch.zeros(1, FLUX["vec_in_dim"])}]]
    plain = step_flops(model, latent, prompt)
    nodes = (run_node(NASA, model=model, negative=prompt, method=method) for method in METHODS)
    return tuple(step_flops(node, latent, prompt) / plain for node in nodes)


def text_cost_rows() -> None:
    nasa, nag = text_costs(unet(), torch.zeros(1, 4, 32, 32), torch.zeros(1, 77 // 5, 152))
    print_row(f"| SD1.5 | 64 x 64 | 77 | {nasa:.2f} | {nag:.2f} |")
    for image, text in ((256, 256), (1024, 256), (4096, 256), (4096, 512)):
        side = round((image // 4) ** 0.5)
        latent, tokens = torch.zeros(1, 16, 2 * side, 2 * side), torch.zeros(1, text // 4, FLUX["context_in_dim"])
        nasa, nag = text_costs(flux(), latent, tokens)
        print_row(f"| Flux | {image} | {text} | {nasa:.2f} | {nag:.2f} |")
    # Text is padded to 512 tokens; 81 frames of 832 x 480.
    model = without_weights(comfy.supported_models.WAN21_T2V(dict(WAN)))
    nasa, nag = text_costs(model, torch.zeros(1, 16, 21, 30, 26), torch.zeros(1, 512 // 8, WAN["text_dim"]))
    print_row(f"| Wan 14B | 21 x 30 x 52 | 512 | {nasa:.2f} | {nag:.2f} |")


def riding_predictions(demo: Demo, **settings) -> str:
    """In 20 steps with CFG, with a reference latent and without."""
    counts = []
    for latent in ({"samples": torch.zeros_like(demo.noise())}, None):
        model = demo.model.clone()
        model = model if latent is None else run_node(NegToMe, model=model, reference=GIVEN, latent=latent, **settings)
        seen = Predictions(model)
        demo.sample(model, 3.0, steps=20)
        counts.append(seen.count)
    return "{} instead of {}".format(*counts)


def main() -> None:
    torch.set_grad_enabled(False)
    print("Weak branches at the middle block of a UNet, in network evaluations.\n")
    print("| network | latent | PAG | SEG |\n" + "|---" * 4 + "|")
    for name, network, side in (("SD1.5", SD15, 64), ("SDXL", SDXL, 64), ("SDXL", SDXL, 128)):
        pag, seg = weak_shares(network, side)
        print_row(f"| {name} | {side} x {side} | {pag:.3f} | {seg:.3f} |")
    print("\nA prediction with a negative prompt inside attention, in plain ones.\n")
    print("| network | image tokens | text tokens | NASA | NAG |\n" + "|---" * 5 + "|")
    text_cost_rows()
    print("\nNegToMe with a reference latent: predictions of the demo models in 20 steps of euler with CFG.\n")
    print("| model | steps | apply_to | predictions |\n" + "|---" * 4 + "|")
    for family in FAMILIES:
        demo = Demo(family, 1)
        for steps, apply_to in product(STEPS, APPLY_TO):
            print_row(
                f"| {family} | {steps} | {apply_to} | {riding_predictions(demo, steps=steps, apply_to=apply_to)} |"
            )


if __name__ == "__main__":
    main()
