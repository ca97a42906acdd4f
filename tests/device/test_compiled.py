"""Core's TorchCompileModel on a card compiles with inductor; here, where there is none, it traces only. Nodes give the
same within the type's bound, add what breaks they need between graphs, and nothing is compiled again after the first
step."""

import time

import pytest
import torch
import torch._dynamo
from comfy.model_patcher import ModelPatcher

from guidekit.tests.device.machine import GPU, MEASURED, SLACK, error, half, sized, wide
from guidekit.tests.host import tiny
from guidekit.tests.host.compiled import compiled, sample
from guidekit.tests.host.products import PRODUCTS

BACKEND = "inductor" if GPU else "eager"
NODES = {p.name: p for p in PRODUCTS}
CASES = [("no node", "node"), ("pag", "node"), ("negtome", "compile")]
FAMILY = sized("flux")
NETWORK = {**tiny.of(FAMILY).network, "depth": 1, "depth_single_blocks": 1}  # what takes long is compiling


@pytest.fixture(autouse=True)
def from_the_start():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def new(kind):
    return tiny.build(NETWORK, FAMILY, kind=kind)


@pytest.mark.parametrize(("name", "first"), CASES, ids=["plain", "pag_first", "negtome_behind"])
def test_compiled(name, first):
    apply, kind = NODES[name].apply if name in NODES else ModelPatcher.clone, half(torch.bfloat16)
    model, plain = new(kind), new(wide(torch.bfloat16))
    own = error(tiny.sample(model.clone(), FAMILY, steps=3), tiny.sample(plain, FAMILY, steps=3))
    wanted = tiny.sample(apply(model), FAMILY, steps=3)
    order = (apply, lambda m: compiled(m, BACKEND))
    applied = model
    for step in order if first == "node" else order[::-1]:
        applied = step(applied)
    started = time.perf_counter()
    found, graphs = sample(applied, FAMILY)
    took = time.perf_counter() - started
    count = sum(number for _, number in graphs.calls)
    MEASURED.append(
        f"compiled by {BACKEND}, {name}: {graphs.breaks} breaks between {count} graphs of {len(graphs.calls)} calls, "
        f"{took:.0f} s"
    )
    off = error(found, wanted)
    assert off < SLACK * own, f"off by {off:.1e} from not compiled, allowed {SLACK * own:.1e}"
    assert graphs.again == [], f"compiled again in (call, rows) {graphs.again}"
    assert torch.equal(tiny.sample(applied, FAMILY, steps=3), found), "another result the second time"
