"""The card is full in the middle of a run: nothing of the run stays, and the next prompt runs as if nothing had
happened."""

import gc
import weakref
from dataclasses import dataclass, field

import comfy.model_management
import pytest
import torch

from guidekit.nodes.host.predictions.corrections import observe
from guidekit.nodes.host.run.loaded_beside import loaded_beside
from guidekit.tests.device.machine import DEVICE, GPU, half, sample, sized
from guidekit.tests.host import tiny
from guidekit.tests.host.mechanisms import REPRESENTATIVES
from guidekit.tests.host.products import PRODUCTS

CASES = [
    pytest.param(product, family, share, id=f"{product.name}-{family}-{share}")
    for product in PRODUCTS
    for family in ("flux", "unet")
    for share in (0.25, 0.9)
    if family in product.families
    and (family == "flux") + (share > 0.5) + (product.name in REPRESENTATIVES.values()) >= 2 + GPU
]


@dataclass
class Attention:
    """As another pack's override: counts, and finds the memory full in call `full`."""

    full: int | None = None
    calls: int = 0

    def __call__(self, usual, *args, **kwargs):
        self.calls += 1
        if self.calls == self.full:
            _allocate()
        return usual(*args, **kwargs)


def _allocate() -> None:
    if GPU:
        torch.empty(2**50, dtype=torch.uint8, device=DEVICE)
    raise torch.OutOfMemoryError("simulated")


@dataclass
class Watch:
    """Sees the run that a model is in."""

    runs: list = field(default_factory=list)

    def __call__(self, run, args) -> None:
        if not self.runs:
            self.runs.append(weakref.ref(run))


def new(product, family, attention):
    model = tiny.model(sized(family), kind=half(torch.bfloat16))
    model.model_options["transformer_options"]["optimized_attention_override"] = attention
    return product.apply(model)


def hooks_in(network: torch.nn.Module) -> list:
    return [m for m in network.modules() if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks]


def on_card() -> int:
    comfy.model_management.unload_all_models()
    gc.collect()
    comfy.model_management.soft_empty_cache()
    return torch.cuda.memory_allocated() if GPU else 0


@pytest.mark.parametrize(("product", "family", "share"), CASES)
def test_a_full_card_leaves_nothing(product, family, share):
    sample(new(product, family, Attention()), family)  # what a process does once: loads libraries, measures kernels
    usual = Attention()
    wanted = sample(new(product, family, usual), family)
    before = on_card()
    model, watch = new(product, family, Attention(int(usual.calls * share))), Watch()
    observe(model, watch)
    options = {name: value for name, value in model.model_options.items() if name != "transformer_options"}
    networks = [m.model for m in (model, *loaded_beside(model))]
    with pytest.raises(torch.OutOfMemoryError):
        sample(model, family)
    assert [hooks_in(network) for network in networks] == [[] for _ in networks], "hooks stay in a network"
    assert "guidekit_run" not in model.model_options["transformer_options"]
    assert {n: v for n, v in model.model_options.items() if n != "transformer_options"} == options
    gc.collect()
    assert [run() for run in watch.runs] == [None] * len(watch.runs), "the run is still held"
    left = on_card() - before
    assert left <= 2**20, f"{left / 2**20:.0f} MiB stay on the card"
    again = sample(new(product, family, Attention()), family)
    assert torch.equal(again, wanted), "the next prompt gives another result"
    model.model_options["transformer_options"]["optimized_attention_override"] = Attention()
    assert torch.equal(sample(model, family), wanted), "the same model gives another result afterwards"
