"""Train Preference LoRA on the card: gradients through the card's attention and the type that the network computes in,
weights of every kind and wherever they lie, and a card that is full in the middle of a step."""

import gc
import math
from dataclasses import replace

import comfy.model_management
import pytest
import torch
from comfy.model_patcher import ModelPatcher

from guidekit.nodes.host.training.trainer import Trainer
from guidekit.tests.device.layers import WEIGHTS
from guidekit.tests.device.loading import WAYS, keep
from guidekit.tests.device.machine import DEVICE, DYNAMIC, GPU, HALVES, MEASURED, error, half, sized, wide
from guidekit.tests.host import tiny
from guidekit.tests.host.votes import perturb, trainer

FAMILIES = ("flux", "unet", "wan")
# Relative, of the gradients of all products, in bfloat16, whose numbers are 0.4 % apart.
GRADIENT_ERROR = 0.15


def new(family: str, kind: tiny.Kind, **settings) -> Trainer:
    name = sized(family)
    model = tiny.model(name, kind=kind)
    model.cached_patcher_init = load_anew, (name, kind)  # wanted where there is dynamic VRAM
    return trainer(name, model=model, **settings)


def load_anew(name: str, kind: tiny.Kind, disable_dynamic: bool) -> ModelPatcher:
    return tiny.model(name, kind=replace(kind, patcher=ModelPatcher) if disable_dynamic else kind)


def gradients(found: Trainer) -> torch.Tensor:
    """Of one step from products that do something."""
    perturb(found, 0.02)
    found.run()
    return torch.cat([p.grad.flatten().cpu() for p in found.adapters.parameters()])


def bytes_of(model) -> dict[str, bytes]:
    tensors = {k: v for k, v in model.model.state_dict().items() if isinstance(v, torch.Tensor) and v.ndim}
    return {k: v.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() for k, v in tensors.items()}


@pytest.fixture(autouse=True)
def _loaded_anew():
    yield
    comfy.model_management.unload_all_models()


@pytest.mark.skipif(DYNAMIC, reason="the same with all weights in place")
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointing"])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_in_float32(family, dtype, checkpointing):
    settings = {"steps": 1, "clip": 0.0, "layers": "all linear", "checkpointing": checkpointing}
    found = gradients(new(family, half(HALVES[dtype]), **settings))
    wanted = gradients(new(family, wide(HALVES[dtype]), **settings))
    off = error(found, wanted)
    MEASURED.append(f"gradients, {family}, {dtype}, checkpointing {checkpointing}: off by {off:.1e}")
    assert off < GRADIENT_ERROR, f"off by {off:.1e} from those in float32, allowed {GRADIENT_ERROR:g}"


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointing"])
@pytest.mark.parametrize("way", ("whole",) if DYNAMIC else WAYS)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_learns_with_weights_of_every_kind(weights, way, checkpointing, monkeypatch):
    keep(way, monkeypatch)
    found = new("flux", WEIGHTS[weights], rate=1e-2, checkpointing=checkpointing)
    before = bytes_of(found.model)
    found.run()
    assert all(math.isfinite(point.loss) for point in found.curve)
    assert all(p.up.dtype == torch.float32 and p.up.abs().max() > 0 for p in found.adapters.products.values())
    comfy.model_management.unload_all_models()
    assert bytes_of(found.model) == before, "the weights are others afterwards"


@pytest.mark.skipif(DYNAMIC, reason="the same with all weights in place")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_full_card_leaves_nothing(family, monkeypatch):
    def on_card() -> int:
        comfy.model_management.unload_all_models()
        gc.collect()
        comfy.model_management.soft_empty_cache()
        return torch.cuda.memory_allocated() if GPU else 0

    new(family, half(torch.bfloat16), steps=1).run()  # what a process does once
    found = new(family, half(torch.bfloat16), steps=3)
    before, calls = on_card(), 0
    take_step = found.take_step

    def full(session):
        nonlocal calls
        calls += 1
        if calls == 2:
            handle = session.base.diffusion_model.register_forward_hook(_allocate)
            try:
                return take_step(session)
            finally:
                handle.remove()
        return take_step(session)

    monkeypatch.setattr(found, "take_step", full)
    with pytest.raises(torch.OutOfMemoryError):
        found.run()
    assert (found.step, len(found.curve)) == (1, 1)
    assert not comfy.model_management.in_training
    moments = sum(2 * p.numel() * 4 for p in found.adapters.parameters())
    gradients = moments // 2
    left = on_card() - before
    assert left <= moments + gradients + 2**20, f"{left / 2**20:.0f} MiB stay on the card"
    monkeypatch.undo()
    found.run()
    assert found.step == 3


def _allocate(*_) -> None:
    if GPU:
        torch.empty(2**50, dtype=torch.uint8, device=DEVICE)
    raise torch.OutOfMemoryError("simulated")
