"""Every node in half precision: right within the type's bound, finite where activations are large, repeatable."""

import pytest
import torch

from guidekit.tests.device.machine import DEVICE, FAMILIES, HALVES, bound, error, half, plain, sample, sized, wide
from guidekit.tests.host import tiny
from guidekit.tests.host.products import PRODUCTS

# float16 where the host takes it for that family, and one product of every mechanism.
CASES = [
    pytest.param(product, family, dtype, id=f"{product.name}-{family}-{name}")
    for name, dtype in HALVES.items()
    for product in PRODUCTS
    for family in FAMILIES
    if family in product.families and (name == "bf16" or family in ("unet", "flux"))
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
    assert torch.equal(sample(model, family), found), "another result the second time"
    monkeypatch.setattr(type(model), "get_free_memory", lambda self, device: 0)
    off = error(sample(model, family), found)
    assert off < limit, f"split by memory off by {off:.1e} from whole, allowed {limit:.1e}"
