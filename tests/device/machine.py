"""Where the tests of this folder run: on a GPU with middle networks if there is one, else on the processor with tiny
ones. What is asked is the same."""

import os
from functools import cache

import comfy.memory_management
import comfy.model_management
import comfy.model_patcher
import torch
from comfy.model_patcher import ModelPatcher

from guidekit.nodes.elucd import EluCD
from guidekit.tests.host import adapters, tiny
from guidekit.tests.host.products import Product

GPU = torch.cuda.is_available()
DEVICE = str(comfy.model_management.get_torch_device()) if GPU else "cpu"
DYNAMIC = "GUIDEKIT_DYNAMIC_VRAM" in os.environ  # set by test_dynamic.py
FAMILIES = tuple(name.removesuffix(" middle") for name in tiny.MIDDLE)
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
STEPS = 2
MEASURED: list[str] = []  # lines for the end of the report
# Times the error that the networks themselves make in the type: guidance multiplies the differences of predictions, and
# with them what is wrong with these. Measured: 3 at most, and 11 for EluCD, which follows the gradient of a network of
# ReLUs, and that has steps.
SLACK, SLACK_OF_GRADIENTS = 8, 40


def sized(family: str) -> str:
    """The name of the family's network for this machine."""
    return f"{family} middle" if GPU else family


def patcher() -> type[ModelPatcher]:
    """The host's, for networks on this device. With dynamic VRAM it is turned on as main.py does it."""
    if not DYNAMIC:
        return ModelPatcher
    if not comfy.memory_management.aimdo_enabled:
        import comfy_aimdo.control

        index = comfy.model_management.get_torch_device().index
        comfy_aimdo.control.init()
        comfy.memory_management.aimdo_enabled = comfy_aimdo.control.init_devices([(index, 0)])
        assert comfy.memory_management.aimdo_enabled, "comfy-aimdo does not start"
    return comfy.model_patcher.ModelPatcherDynamic


def half(dtype: torch.dtype) -> tiny.Kind:
    """A network of this type, which computes in it."""
    return tiny.Kind(dtype, dtype, device=DEVICE, patcher=patcher())


def wide(dtype: torch.dtype, device: str = DEVICE) -> tiny.Kind:
    """The network with the same weights that computes in float32."""
    return tiny.Kind(rounds=dtype, device=device)


def sample(model, family: str, **options) -> torch.Tensor:
    return tiny.sample(model, sized(family), **{"steps": STEPS, **options})


@cache
def plain(family: str, kind: tiny.Kind, **options) -> torch.Tensor:
    return sample(tiny.model(sized(family), kind=kind), family, **options)


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Root mean square of the difference, relative to that of what is wanted."""
    return ((found - wanted).norm() / wanted.norm()).item()


@cache
def with_lora(family: str, kind: tiny.Kind) -> torch.Tensor:
    """The result of the network with the LoRA that products put on some rows."""
    return sample(adapters.lora(tiny.model(sized(family), kind=kind)), family)


def bound(product: Product, family: str, dtype: torch.dtype) -> float:
    """What a result in `dtype` may differ by from that in float32."""
    kinds = half(dtype), wide(dtype)
    off = error(*(plain(family, kind) for kind in kinds))
    if product.shares_weights:
        off = max(off, error(*(with_lora(family, kind) for kind in kinds)))
    return (SLACK_OF_GRADIENTS if product.node is EluCD else SLACK) * off
