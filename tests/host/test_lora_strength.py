"""A model whose LoRAs have another strength: LoRAs only."""

import comfy.lora
import pytest
import torch
from comfy_extras.nodes_model_merging import ModelMergeSimple

from guidekit.nodes.host.models.second_model import with_lora_strength
from guidekit.tests.host import adapters, tiny


def weights(model) -> dict[str, torch.Tensor]:
    """As the host would load them."""
    plain = adapters.weights_of(model)
    return {
        key: comfy.lora.calculate_weight(model.patches[key], value.clone(), key) if key in model.patches else value
        for key, value in plain.items()
    }


@pytest.fixture
def merge():
    """A merge of two networks, 0.7 of the first."""
    model = tiny.model("unet")
    return ModelMergeSimple().merge(model, tiny.worse(model), 0.7)[0]


@pytest.mark.parametrize("factor", [0.0, 0.5, 2.0])
def test_a_merge_below_a_lora_stays(merge, factor):
    found = weights(with_lora_strength(adapters.lora(merge), factor))
    wanted = weights(adapters.lora(merge, factor))
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-5)
    assert any((found[key] - value).abs().max() > 0.01 for key, value in weights(tiny.model("unet")).items())


def test_a_merge_is_no_lora(merge):
    with pytest.raises(ValueError, match="The model has no LoRA whose strength could be changed"):
        with_lora_strength(merge, 0.5)
