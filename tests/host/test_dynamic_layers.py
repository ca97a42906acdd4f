"""With dynamic VRAM (comfy-aimdo, which the host turns on where there is a card that it works with), the host's linear
layers have no weights until a state dict brings them, and take them as they come. Only that: where weights lie then
wants a card (tests/device/test_dynamic.py)."""

import pytest
import torch

from guidekit.benchmarks._demo import Demo
from guidekit.demo.world import models

memory_management = pytest.importorskip("comfy.memory_management", reason="this host has no dynamic VRAM")


def images(name: str) -> torch.Tensor:
    return Demo(name, 2).sample(models.load(name)[0], 3.0, 2)


@pytest.mark.parametrize("name", models.MODELS)
def test_the_demo_models_are_the_same(name, monkeypatch):
    wanted = images(name)
    monkeypatch.setattr(memory_management, "aimdo_enabled", True)
    assert torch.equal(images(name), wanted)
