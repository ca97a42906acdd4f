"""Every node in half precision: right within the type's bound, finite where activations are large, repeatable."""

from dataclasses import replace

import pytest
import torch

from guidekit.nodes.elucd import EluCD
from guidekit.tests.device.layers import large
from guidekit.tests.device.machine import (
    DEVICE,
    FAMILIES,
    GPU,
    HALVES,
    SLACK,
    bound,
    error,
    half,
    plain,
    sample,
    sized,
    wide,
)
from guidekit.tests.host import tiny
from guidekit.tests.host.mechanisms import REPRESENTATIVES
from guidekit.tests.host.products import PRODUCTS

CASES = [
    pytest.param(product, family, dtype, id=f"{product.name}-{family}-{name}")
    for name, dtype in HALVES.items()
    for product in PRODUCTS
    for family in FAMILIES
    if family in product.families
    and (name == "bf16" or family in ("unet", "flux") and product.name in REPRESENTATIVES.values())
]
IN_ATTENTION = ("pag", "seg", "slg", "autoguidance", "autoguidance_noise", "negtome", "nasa", "nag")
LARGE = [
    pytest.param(product, family, dtype, id=f"{product.name}-{family}-{name}")
    for name, dtype in HALVES.items()
    for product in PRODUCTS
    for family in FAMILIES
    if family in product.families
    and product.name in IN_ATTENTION
    and (name == "fp16") == (family in ("unet", "sd3", "flux", "wan"))  # as they are used
]


@pytest.mark.parametrize("family", FAMILIES)
def test_float32_on_this_device_is_float32_on_the_processor(family):
    """So that the other tests may compare on the device."""
    found = plain(family, wide(torch.bfloat16), steps=1)
    wanted = plain(family, wide(torch.bfloat16, "cpu"), steps=1)
    assert error(found, wanted) < 1e-4, f"float32 on {DEVICE} is off by {error(found, wanted):.1e}, wanted < 1e-4"


@pytest.mark.parametrize(("product", "family", "dtype"), CASES)
def test_right_in_half_precision(product, family, dtype, monkeypatch):
    wanted = sample(product.apply(tiny.model(sized(family), kind=wide(dtype))), family)
    model = product.apply(tiny.model(sized(family), kind=half(dtype)))
    found, limit = sample(model, family), bound(product, family, dtype)
    assert torch.isfinite(found).all()
    off = error(found, wanted)
    assert off < limit, f"off by {off:.1e} from float32, allowed {limit:.1e}"
    again = sample(model, family)
    if GPU and product.node is EluCD:
        # CUDA adds up the gradient of resized images in whatever order its threads come: in float32, but the network
        # then rounds other numbers to the type.
        assert error(again, found) < limit, f"off by {error(again, found):.1e} the second time, allowed {limit:.1e}"
    else:
        assert torch.equal(again, found), "another result the second time"
    monkeypatch.setattr(type(model), "get_free_memory", lambda self, device: 0)
    off = error(sample(model, family), found)
    assert off < limit, f"split by memory off by {off:.1e} from whole, allowed {limit:.1e}"


@pytest.mark.parametrize(("product", "family", "dtype"), LARGE)
def test_activations_of_ten_thousand(product, family, dtype):
    """In attention's values, and so in what comes out of it."""
    kind, exact = (replace(kind, fill=large(dtype)) for kind in (half(dtype), wide(dtype)))
    seen = []

    def look(usual, q, k, v, *args, **kwargs):
        seen.append(v.abs().max())
        return usual(q, k, v, *args, **kwargs)

    model = tiny.model(sized(family), kind=kind)
    model.model_options["transformer_options"]["optimized_attention_override"] = look
    usual = sample(model, family)
    assert torch.isfinite(usual).all(), "the network itself overflows"
    own = error(usual, sample(tiny.model(sized(family), kind=exact), family))
    assert max(seen) > 1e4, f"the largest value is {max(seen):.0f}"
    found = sample(product.apply(tiny.model(sized(family), kind=kind)), family)
    wanted = sample(product.apply(tiny.model(sized(family), kind=exact)), family)
    assert torch.isfinite(found).all()
    off = error(found, wanted)
    assert off < SLACK * own, f"off by {off:.1e} from float32, allowed {SLACK * own:.1e}"
