"""The node that scores images by what a LoRA has learned."""

import pytest

from guidekit.benchmarks._nodes import run_node_all
from guidekit.nodes.preference_score import PreferenceScore
from guidekit.tests.host import adapters, tiny
from guidekit.tests.host.votes import vote_set


def test_scores_rank_a_batch():
    model = tiny.model("unet")
    latent, positive = {"samples": tiny.noise("unet", 3)}, tiny.conditioning("unet", 11)
    scores, order, right, report = run_node_all(
        PreferenceScore, model=model, tuned=adapters.lora(model), latent=latent, positive=positive, levels=2
    )
    assert len(scores) == 3
    assert [scores[i] for i in order] == sorted(scores, reverse=True)
    assert right == 0.5
    assert f"best first: {order[0]}" in report


def test_scores_of_votes_say_how_many_agree():
    model, votes = tiny.model("unet"), vote_set("unet", held_out=4)
    scores, _, right, report = run_node_all(
        PreferenceScore, model=model, tuned=adapters.lora(model), votes=votes, levels=2
    )
    assert len(scores) == 4
    liked = [score for score, row in zip(scores, votes.held_out) if row.label > 0]
    others = [score for score, row in zip(scores, votes.held_out) if row.label < 0]
    assert right == sum(a > b for a in liked for b in others) / len(liked) / len(others)
    assert f"{right:.1%}" in report


@pytest.mark.parametrize("given", [{}, {"latent": 1}, {"votes": 1, "latent": 1, "positive": 1}])
def test_scores_want_images_or_votes(given):
    everything = {"latent": {"samples": tiny.noise("unet", 1)}, "positive": tiny.conditioning("unet", 1)}
    everything["votes"] = vote_set("unet")
    model = tiny.model("unet")
    with pytest.raises(ValueError, match="Connect latent and positive, or votes alone"):
        run_node_all(PreferenceScore, model=model, tuned=model, **{name: everything[name] for name in given})
