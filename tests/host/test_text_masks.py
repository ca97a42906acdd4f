"""Masks of texts that stand beside each other in one attention."""

import comfy.supported_models
import pytest
import torch

from guidekit.benchmarks._nodes import run_node
from guidekit.nodes.host.attention.second_prompt.context import SecondText, TextAttention
from guidekit.nodes.host.attention.second_prompt.joint import split_attention
from guidekit.nodes.nasa import NASA
from guidekit.tests.host import probes, tiny

AHEAD, OWN, IMAGE = 3, 4, 6  # tokens of the second text, the first one, the image
KEPT = torch.tensor([True, False, True, True, *[True] * IMAGE])


class Untouched:
    """A second text that is attended to by itself, and steers nothing."""

    blocks = frozenset()


def attended(mask):
    q, k, v = torch.randn((3, 2, 2, AHEAD + OWN + IMAGE, 8), generator=torch.Generator().manual_seed(1))
    text = SecondText(type("Technique", (), {"technique": Untouched}), torch.zeros(1, AHEAD, 8), None)
    attend = torch.nn.functional.scaled_dot_product_attention
    call = TextAttention((text,), None, slice(AHEAD + OWN, None), None, {}, [0, 1], [True, True], attend)
    return split_attention(call, q, k, v, mask)


@pytest.mark.parametrize("queries", [1, OWN + IMAGE], ids=["of keys", "of queries and keys"])
def test_a_mask_of_truth_values_is_the_same_as_one_of_logits(queries):
    """One made for the sequence without second texts says nothing of them: all of their tokens count."""
    kept = KEPT.expand(queries, -1)
    logits = torch.zeros(kept.shape).masked_fill(~kept, -torch.inf)
    assert torch.equal(attended(kept), attended(logits))
    assert probes.distance(attended(kept), attended(None)) > 1e-2
    # For the second text, whose image tokens no mask hides, it is as if there were none.
    assert torch.equal(attended(kept)[:, :, :AHEAD], attended(None)[:, :, :AHEAD])


@pytest.mark.parametrize("neutral", [torch.zeros(1, 5), torch.ones(1, 5, dtype=torch.long)], ids=["logits", "counts"])
def test_beside_a_text_that_has_a_mask_one_without_counts_whole(neutral):
    """The host adds masks of floats to the logits, and reads others as which tokens count."""
    first, second, third = (tiny.conditioning("qwen_image", seed, 5) for seed in (41, 42, 11))
    with_mask = [[first[0][0], {"attention_mask": neutral}]]

    def sample(negative, positive=third):
        model = run_node(NASA, model=tiny.model("qwen_image"), negative=negative, method="NASA", nasa_alpha=0.4)
        return tiny.sample(model, "qwen_image", positive=positive, cfg=1.0, steps=1)

    wanted = sample(first + second)
    assert probes.distance(sample(with_mask + second), wanted) < 1e-5
    # Beside the row's own text too.
    own = [[third[0][0], {"attention_mask": neutral}]]
    assert probes.distance(sample(first + second, positive=own), wanted) < 1e-5
    assert probes.distance(sample(with_mask), wanted) > 1e-4


def test_a_network_that_places_images_by_the_length_of_the_text(monkeypatch):
    network = {**tiny.FAMILIES["flux"].network, "vec_in_dim": None, "guidance_embed": False, "txt_ids_dims": [1, 2]}
    longcat = tiny.Tiny(comfy.supported_models.LongCatImage, network, (16, 8, 8), 12)
    monkeypatch.setitem(tiny.FAMILIES, "longcat", longcat)
    model = tiny.build(network, "longcat")
    assert torch.isfinite(tiny.sample(model, "longcat")).all()
    with pytest.raises(ValueError, match="cannot put a second text into LongCatImage. It works on UNet"):
        run_node(NASA, model=model, negative=tiny.conditioning("longcat", 33), method="NASA", nasa_alpha=0.4)
