"""Attention by each of the host's kernels that this machine has, and through an override of another pack."""

import sys

import comfy.ldm.modules.attention as attention
import pytest
import torch
from comfy.patcher_extension import WrappersMP

from guidekit.tests.device.machine import SLACK, error, half, sample, sized, wide
from guidekit.tests.host import tiny
from guidekit.tests.host.products import PRODUCTS

BF16 = torch.bfloat16
NODES = {p.name: p for p in PRODUCTS}
IN_ATTENTION = ("pag", "seg", "autoguidance", "negtome", "nag")
BACKENDS = attention.REGISTERED_ATTENTION_FUNCTIONS
SLOT = "optimized_attention_override"
CASES = [
    pytest.param(backend, NODES[name], family, id=f"{backend}-{name}-{family}")
    for backend in BACKENDS
    for name in IN_ATTENTION
    for family in ("unet", "flux", "lumina2")
]


class Counted:
    """A kernel, and how often it was asked."""

    def __init__(self, kernel):
        self.kernel, self.calls = kernel, 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return self.kernel(*args, **kwargs)


def use(backend: str, monkeypatch) -> Counted:
    """As if the host had been started with it."""
    usual, chosen = attention.optimized_attention, Counted(BACKENDS[backend])
    for module in [m for name, m in sys.modules.items() if name.startswith(("comfy.", "guidekit."))]:
        for attribute in ("optimized_attention", "optimized_attention_masked"):
            if getattr(module, attribute, None) is usual:
                monkeypatch.setattr(module, attribute, chosen)
    return chosen


@pytest.mark.parametrize(("backend", "product", "family"), CASES)
def test_backend(backend, product, family, monkeypatch):
    exact, kind = wide(BF16), half(BF16)
    wanted = [sample(tiny.model(sized(family), kind=exact), family)]
    wanted.append(sample(product.apply(tiny.model(sized(family), kind=exact)), family))
    kernel = use(backend, monkeypatch)
    limit = SLACK * error(sample(tiny.model(sized(family), kind=kind), family), wanted[0])
    before = kernel.calls
    found = sample(product.apply(tiny.model(sized(family), kind=kind)), family)
    assert kernel.calls > before > 0, "the kernel was not asked"
    assert torch.isfinite(found).all()
    off = error(found, wanted[1])
    assert off < limit, f"off by {off:.1e} from float32, allowed {limit:.1e}"


class Other:
    """Another pack's override: counts, and attends by another kernel or by what had the slot before."""

    def __init__(self, before=None):
        self.before, self.calls = before, 0

    def __call__(self, usual, *args, **kwargs):
        self.calls += 1
        if self.before is not None:
            return self.before(usual, *args, **kwargs)
        return attention.attention_split(*args, **kwargs)


def options_of(model) -> dict:
    return model.model_options.setdefault("transformer_options", {})


def before(product, model, other):
    options_of(model)[SLOT] = other
    return product.apply(model)


def after(product, model, other):
    model = product.apply(model)
    options_of(model)[SLOT] = other
    return model


def within_the_run(product, model, other):
    """One that takes the slot when the run starts, behind ours, and hands on to what it finds there."""
    model = product.apply(model)

    def wrapper(executor, *args, **kwargs):
        options = executor.class_obj.model_options["transformer_options"]
        other.before = options.get(SLOT)
        options[SLOT] = other
        try:
            return executor(*args, **kwargs)
        finally:
            options.pop(SLOT)

    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "another pack", wrapper)
    return model


@pytest.mark.parametrize("place", [before, after, within_the_run], ids=lambda place: place.__name__)
@pytest.mark.parametrize("family", ["unet", "flux"])
@pytest.mark.parametrize("name", IN_ATTENTION)
def test_beside_an_override_of_another_pack(name, family, place):
    product, other = NODES[name], Other()
    limit = SLACK * error(
        sample(tiny.model(sized(family), kind=half(BF16)), family),
        sample(tiny.model(sized(family), kind=wide(BF16)), family),
    )
    wanted = sample(product.apply(tiny.model(sized(family), kind=half(BF16))), family)
    model = place(product, tiny.model(sized(family), kind=half(BF16)), other)
    off = error(sample(model, family), wanted)
    assert other.calls, "the other pack was never asked"
    assert off < limit, f"off by {off:.1e} from without it, allowed {limit:.1e}"
