"""The host distributes the predictions of a step over copies of the network on two cards (on the CPU, if there are not
two): every node gives the same result as on one."""

import pytest
import torch
from comfy.model_patcher import ModelPatcher

from guidekit.tests.device.machine import FAMILIES, GPU, error
from guidekit.tests.host import tiny
from guidekit.tests.host.mechanisms import REPRESENTATIVES
from guidekit.tests.host.products import PRODUCTS

TWO_CARDS = torch.cuda.device_count() > 1
pytestmark = [
    pytest.mark.skipif(not hasattr(ModelPatcher, "deepclone_multigpu"), reason="this host samples on one device only"),
    pytest.mark.skipif(GPU and not TWO_CARDS, reason="one card; machines without one do this on the processor"),
]
PLACES = ("cuda:0", torch.device("cuda", 1)) if TWO_CARDS else ("cpu", torch.device("cpu", 0))
CASES = [
    pytest.param(product, family, id=f"{product.name}-{family}")
    for product in PRODUCTS
    for family in FAMILIES
    if family in product.families and (family == "flux" or product.name in REPRESENTATIVES.values())
]


def new(family: str) -> ModelPatcher:
    kind = tiny.Kind(device=PLACES[0])
    model = tiny.model(family, kind=kind)
    model.cached_patcher_init = (tiny.build, (tiny.of(family).network, family, None, torch.float32, kind))
    return model


@pytest.mark.parametrize(("product", "family"), CASES)
def test_the_same_on_two_devices(product, family):
    alone = tiny.sample(product.apply(new(family)), family, steps=2)
    model = new(family)
    copy = model.deepclone_multigpu(new_load_device=PLACES[1])
    copy.is_multigpu_base_clone = True
    model.set_additional_models("multigpu", [copy])
    model = product.apply(model)
    used = []
    handles = [
        patcher.model.diffusion_model.register_forward_pre_hook(lambda *_, i=i: used.append(i))
        for i, patcher in enumerate((model, model.get_additional_models_with_key("multigpu")[0]))
    ]
    try:
        found = tiny.sample(model, family, steps=2)
    finally:
        for handle in handles:
            handle.remove()
    one_by_one = "negative" in product.attaches  # what stands in for it may only be asked after the positive
    assert set(used) == {0, 1} or one_by_one, "one of the two did nothing"
    assert error(found, alone) < 1e-4, f"off by {error(found, alone):.1e} from one device"
