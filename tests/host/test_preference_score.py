"""The node that scores images by what a LoRA has learned."""

from dataclasses import replace

import pytest
import torch

from guidekit.benchmarks._nodes import run_node_all
from guidekit.nodes.host.inputs import fit_votes
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


def test_one_model_is_compared():
    with pytest.raises(ValueError, match="model is BaseModel, and tuned Flux. Connect one model, without its LoRA"):
        run_node_all(PreferenceScore, model=tiny.model("unet"), tuned=tiny.model("flux"), votes=vote_set("unet"))


@pytest.mark.parametrize(
    ("of", "sentence"),
    [
        ("flux", "The latent of a vote has shape"),
        ("wider", "The prompt of a vote has 24 channels per token, and BaseModel takes 16: the vote is on an image"),
    ],
)
def test_votes_on_images_of_another_model_are_refused(of, sentence):
    votes = vote_set("unet" if of == "wider" else of)
    if of == "wider":
        prompt = [[torch.zeros(1, 7, 24), {}]]
        votes = replace(votes, rows=tuple(replace(row, positive=prompt) for row in votes.rows))
    model = tiny.model("unet")
    with pytest.raises(ValueError, match=sentence):
        run_node_all(PreferenceScore, model=model, tuned=model, votes=votes)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_votes_fit_every_family(family):
    votes = vote_set(family)
    assert len(fit_votes(tiny.model(family), votes.rows)) == len(votes.rows)
