"""Votes as nodes take and give them: what is read from a graph, which model made an image, what a trainer gets."""

import copy
import json
import zlib
from dataclasses import replace
from datetime import datetime
from types import SimpleNamespace

import comfy.sample
import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from guidekit.benchmarks._nodes import run_node_all
from guidekit.nodes.export_votes import ExportVotes
from guidekit.nodes.host.votes import as_json, offers, opened
from guidekit.nodes.host.votes.digest import model_digest, policy_digest
from guidekit.nodes.host.votes.errors import StoreError
from guidekit.nodes.host.votes.filters import Filter
from guidekit.nodes.host.votes.offers import Shown, pixels_of
from guidekit.nodes.host.votes.pairs import Voted, pairs_in
from guidekit.nodes.host.votes.recipe import read_recipe
from guidekit.nodes.host.votes.rule import ABOVE, BELOW, labels_of
from guidekit.nodes.host.votes.vote import Offer, Recipe
from guidekit.nodes.import_votes import ImportVotes
from guidekit.nodes.vote import Vote
from guidekit.nodes.vote_by_rule import VoteByRule
from guidekit.nodes.votes import Votes
from guidekit.tests.device.layers import WEIGHTS
from guidekit.tests.host import adapters, tiny


@pytest.fixture(autouse=True)
def store(monkeypatch, tmp_path):
    """Of this test; and its input and output."""
    monkeypatch.setattr("folder_paths.get_user_directory", lambda: str(tmp_path / "user"))
    monkeypatch.setattr("folder_paths.get_output_directory", lambda: str(tmp_path / "output"))
    monkeypatch.setattr("folder_paths.get_input_directory", lambda: str(tmp_path / "input"))
    found = opened.store()
    yield found
    found.close()


def images(count, seed=0):
    return torch.rand(count, 16, 16, 3, generator=torch.Generator().manual_seed(seed))


def voted(store, text, likes, dislikes, **changes):
    """Of one prompt; each image is another one. Returns the ids."""
    offers = []
    for number in range(likes + dislikes):
        pixels = pixels_of(images(1, zlib.crc32(f"{text} {number}".encode()))[0])
        recipe = Recipe(text=text, cfg=3.0, policy="p")
        prompt = [[torch.full((1, 4, 16), float(len(text))), {}]]
        offer = Offer(pixels, recipe, torch.full((1, 4, 8, 8), float(number)), prompt, None)
        offers.append(replace(offer, label=1 if number < likes else -1, **changes))
    return [vote.id for vote in store.offer(offers)]


def loaded(**settings):
    return run_node_all(Votes, **{"hold_out": 0.0, **settings})


# What a graph says

GRAPH = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "base.safetensors"}},
    "2": {
        "class_type": "LoraLoader",
        "inputs": {"model": ["1", 0], "clip": ["1", 1], "lora_name": "in/a.safetensors", "strength_model": 0.7},
    },
    "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["2", 1], "text": ["9", 0]}},
    "4": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["2", 1], "text": "bad"}},
    "5": {
        "class_type": "KSampler",
        "inputs": {
            "model": ["2", 0],
            "positive": ["3", 0],
            "negative": ["4", 0],
            "latent_image": ["6", 0],
            "seed": ["10", 0],
            "steps": 12,
            "cfg": 4,
            "sampler_name": "euler",
            "scheduler": "karras",
            "denoise": 1.0,
        },
    },
    "6": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 2}},
    "7": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
    "8": {"class_type": "GuidekitVote", "inputs": {"images": ["7", 0], "samples": ["5", 0], "tag": ""}},
    "9": {"class_type": "PrimitiveString", "inputs": {"value": "a ball"}},
    "10": {"class_type": "PrimitiveInt", "inputs": {"value": 33}},
}
CUSTOM = {
    "1": {"class_type": "UNETLoader", "inputs": {"unet_name": "base.safetensors", "weight_dtype": "default"}},
    "3": {"class_type": "CLIPTextEncodeFlux", "inputs": {"clip": ["2", 0], "clip_l": "ball", "t5xxl": "a large ball"}},
    "4": {"class_type": "FluxGuidance", "inputs": {"conditioning": ["3", 0], "guidance": 3.5}},
    "5": {"class_type": "CFGGuider", "inputs": {"model": ["1", 0], "positive": ["4", 0], "cfg": 1.5}},
    "6": {"class_type": "RandomNoise", "inputs": {"noise_seed": 33}},
    "7": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "heun"}},
    "8": {"class_type": "BasicScheduler", "inputs": {"model": ["1", 0], "scheduler": "beta", "steps": 9}},
    "9": {
        "class_type": "SamplerCustomAdvanced",
        "inputs": {"noise": ["6", 0], "guider": ["5", 0], "sampler": ["7", 0], "sigmas": ["8", 0]},
    },
}


@pytest.fixture
def known_files(monkeypatch, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"abc")
    names = dict.fromkeys(("checkpoints", "diffusion_models"), ["base.safetensors"]) | {"loras": ["in/a.safetensors"]}
    monkeypatch.setattr("folder_paths.get_filename_list", lambda folder: names.get(folder, []))
    monkeypatch.setattr("folder_paths.get_full_path", lambda folder, name: str(tmp_path / "a.safetensors"))


def test_a_recipe_is_read_from_the_graph(known_files):
    found = read_recipe(GRAPH, ["5", 0])
    assert (found.text, found.negative_text, found.seed, found.steps, found.cfg) == ("a ball", "bad", 33, 12, 4.0)
    assert (found.sampler, found.scheduler, found.model_name) == ("euler", "karras", "base.safetensors")
    [lora] = found.loras
    assert (lora.name, lora.strength) == ("in/a.safetensors", 0.7)
    assert lora.digest == "ba7816bf8f01cfea414140de5dae2223"  # half of SHA-256 of abc, FIPS 180-2


def test_a_recipe_of_a_custom_sampler(known_files):
    found = read_recipe(CUSTOM, ["9", 1])
    assert (found.text, found.negative_text, found.seed) == ("a large ball", None, 33)
    assert (found.sampler, found.scheduler, found.steps, found.cfg) == ("heun", "beta", 9, 1.5)
    assert found.model_name == "base.safetensors"


def test_a_graph_may_say_nothing():
    assert read_recipe({}, None) == Recipe()
    assert read_recipe({"1": {"class_type": "Odd", "inputs": {"a": ["1", 0], "b": ["7", 0]}}}, ["1", 0]).text is None


def hidden(graph, node, workflow=None):
    info = {"workflow": {"id": "w", "nodes": []}} if workflow is None else workflow
    return SimpleNamespace(prompt=graph, extra_pnginfo=info, unique_id=node)


def shown(count=2, latent=None, graph=GRAPH, **changes):
    latent = {"samples": torch.randn(count, 4, 8, 8)} if latent is None else latent
    given = {"model": None, "positive": None, "negative": None, "tag": "t", "hidden": hidden(graph, "8")}
    return Shown(images(count), latent, **{**given, **changes})


ODD = {
    "markup": ("<img src=x onerror=alert(1)> [[a|b]]", "<img src=x onerror=alert(1)> [[a|b]]"),
    "huge": ("ball " * 100_000, ("ball " * 2000)),
    "half a character": ("a \ud83d ball", "a ? ball"),
    "nothing": ("", ""),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_texts_are_kept_shown_and_exported(store, tmp_path, name):
    given, wanted = ODD[name]
    graph = copy.deepcopy(GRAPH)
    graph["9"]["inputs"]["value"] = given
    graph["5"]["inputs"] |= {"cfg": float("nan"), "sampler_name": given}
    [vote] = store.offer([offer.voted(1) for offer in shown(1, graph=graph).offers()])
    assert vote.recipe.text == wanted
    assert vote.recipe.cfg is None
    assert json.loads(json.dumps(as_json.for_page(vote), allow_nan=False))["text"] == wanted
    [report] = run_node_all(ExportVotes)
    assert report == "1 likes, 0 dislikes and 0 pairs are in output/guidekit/votes."
    [caption] = (tmp_path / "output" / "guidekit" / "votes").rglob("*.txt")
    assert caption.read_text("utf-8") == wanted
    [line] = (caption.parents[1] / "votes.jsonl").read_text("utf-8").splitlines()
    assert json.loads(line)["sampler"] == wanted[:300]
    assert imported("output/guidekit/votes").endswith("; 0 of the images are new.")
    assert store.get([vote.id])[0].recipe.text == wanted.strip()


@pytest.mark.parametrize("value", ["x" * offers.MOST_WORKFLOW, float("nan")], ids=["huge", "no JSON"])
def test_a_workflow_that_cannot_be_kept(store, value):
    graph = {**GRAPH, "12": {"class_type": "Odd", "inputs": {"value": value}}}
    given = shown(1, graph=graph)
    [vote] = store.offer(given.offers())
    assert vote.workflow is None
    assert vote.recipe.text == "a ball"
    assert "The workflow is too large to be kept" in " ".join(given.lacks())
    assert "workflow" not in " ".join(shown(1).lacks())


def test_the_noise_is_that_of_each_image():
    first, second = shown().offers()
    host = comfy.sample.prepare_noise(torch.zeros(2, 4, 8, 8), 33)
    assert torch.equal(first.recipe.noise.tensor(), host[:1])
    assert torch.equal(second.recipe.noise.tensor(), host[1:])
    of_a_batch = {"samples": torch.randn(2, 4, 8, 8), "batch_index": [3, 1]}
    host = comfy.sample.prepare_noise(torch.zeros(2, 4, 8, 8), 33, [3, 1])
    for offer, wanted in zip(shown(latent=of_a_batch).offers(), host):
        assert torch.equal(offer.recipe.noise.tensor(), wanted[None])


@pytest.mark.parametrize("change", ["a node between", "no noise added", "an entry of a list"])
def test_noise_that_is_not_sure_is_left_open(change):
    graph = copy.deepcopy(GRAPH)
    if change == "a node between":
        graph["11"] = {"class_type": "LatentFlip", "inputs": {"samples": ["5", 0]}}
        graph["8"]["inputs"]["samples"] = ["11", 0]
    elif change == "no noise added":
        graph["5"]["inputs"]["add_noise"] = "disable"
    [first, _] = shown(graph=graph, alone=change != "an entry of a list").offers()
    assert first.recipe.noise is None
    assert first.recipe.seed == 33


def test_what_is_shown_goes_with_its_latent():
    """Row by row; a prompt may have a row for each; a video is its frame in the middle."""
    prompt = [[torch.arange(2.0)[:, None, None].expand(2, 3, 5), {"pooled_output": torch.arange(2.0)[:, None]}]]
    latents = torch.randn(2, 4, 8, 8)
    graph = {**GRAPH, "6": {**GRAPH["6"], "is_changed": [float("nan")]}}  # as the host has it while it runs
    first, second = shown(latent={"samples": latents}, positive=prompt, graph=graph).offers()
    assert torch.equal(first.latent, latents[:1])
    assert second.positive[0][0].unique().tolist() == [1.0]
    assert second.positive[0][1]["pooled_output"].tolist() == [[1.0]]
    assert (second.workflow_id, second.node, second.tag) == ("w", "8", "t")
    assert json.loads(second.workflow) == {"prompt": GRAPH, "workflow": {"id": "w", "nodes": []}}
    [video] = shown(5, {"samples": torch.randn(1, 4, 2, 8, 8)}).offers()
    assert np.array_equal(video.pixels, pixels_of(images(5)[2]))
    with pytest.raises(ValueError, match="There are 3 images and 2 latents"):
        shown(3, {"samples": latents}).offers()


def test_pixels_are_those_of_save_image():
    image = torch.tensor([[[-1.0, 0.5, 1.5, 0.0], [0.999, 1 / 255, 0.0, 1.0]]])
    assert pixels_of(image).tolist() == [[[0, 127, 255], [254, 1, 0]]]
    assert pixels_of(image[..., :1]).tolist() == [[[0, 0, 0], [254, 254, 254]]]


# Which model made it


@pytest.mark.parametrize("family", ["unet", "flux"])
def test_a_model_is_known_by_its_weights(family):
    model = tiny.model(family)
    tuned = adapters.lora(model)
    assert policy_digest(model) == model_digest(model) == model_digest(tuned) == policy_digest(model.clone())
    assert policy_digest(tuned) not in (policy_digest(model), "")
    half = model.clone()
    half.patches = {key: [(0.5, *patch[1:]) for patch in patches] for key, patches in tuned.patches.items()}
    assert len({policy_digest(each) for each in (model, tuned, half)}) == 3
    assert model_digest(tiny.worse(model)) != model_digest(model)


def test_a_loaded_model_has_the_name_it_had():
    """Weights with a LoRA merged into them are not taken for the model's."""
    model = tiny.model("unet")
    tuned = adapters.lora(model)
    before = model_digest(model), policy_digest(tuned)
    tuned.patch_model(load_weights=True)
    assert (model_digest(tuned), policy_digest(tuned)) == before
    tuned.unpatch_model()
    assert (model_digest(model), policy_digest(tuned)) == before


@pytest.mark.parametrize("weights", WEIGHTS)
def test_digests_of_weights_in_fewer_bits(weights):
    model = tiny.model("flux", kind=WEIGHTS[weights])
    tuned = adapters.lora(model)
    before = model_digest(model), policy_digest(tuned)
    assert before[0] != before[1]
    tiny.sample(tuned, "flux", steps=1)
    assert (model_digest(tuned), policy_digest(tuned)) == before


# Nodes


def test_a_vote_node_keeps_what_it_shows(store):
    model = tiny.model("unet")
    positive = tiny.conditioning("unet", 1, 5)
    latent = {"samples": torch.randn(2, 4, 8, 8)}
    given = {"samples": latent, "model": model, "positive": positive, "tag": "x"}
    [report] = run_node_all(Vote, images=images(2), **given)
    assert report == "2 images to vote on."
    first, second = sorted(store.find(Filter(tag="x")), key=lambda vote: float(store.latent(vote)[0, 0, 0, 0]))
    assert {first.recipe.policy, second.recipe.policy} == {policy_digest(model)}
    assert torch.equal(torch.cat([store.latent(first), store.latent(second)]).sort(0)[0], latent["samples"].sort(0)[0])
    assert torch.equal(store.conditioning(first.positive)[0][0], positive[0][0])
    [report] = run_node_all(Vote, images=images(1, seed=5))
    assert "No samples are connected" in report
    assert "No positive is connected" in report
    assert "No model is connected" in report


def test_what_is_too_large_is_said(monkeypatch):
    monkeypatch.setattr(offers.blobs, "LARGEST", 100)
    given = shown(1, positive=tiny.conditioning("unet", 1, 5))
    [offer] = given.offers()
    assert (offer.latent, offer.positive) == (None, None)
    said = " ".join(given.lacks())
    assert "The tensors of positive are too large" in said
    assert "The latents are too large" in said
    assert "negative" not in said


def test_latents_of_another_model_are_refused(store):
    given = {"samples": {"samples": torch.randn(2, 16, 8, 8)}, "model": tiny.model("unet")}
    with pytest.raises(ValueError, match="samples has shape .* takes .*4 channels"):
        run_node_all(Vote, images=images(2), **given)
    with pytest.raises(ValueError, match="samples has shape .* takes .*4 channels"):
        run_node_all(VoteByRule, images=images(1), score=1.0, **given)
    assert store.find(Filter()) == []


@pytest.mark.parametrize("wrong", [torch.zeros(16, 16, 3), torch.full((1, 4, 4, 3), torch.nan), "image", None])
def test_what_is_no_image_is_refused(wrong):
    with pytest.raises(ValueError, match=r"images (is|hold)|The values of images"):
        run_node_all(Vote, images=wrong)


def by_rule(count, **given):
    defaults = {"threshold": [0.5], "likes": [ABOVE], "margin": [0.0], "tag": [""]}
    return VoteByRule.execute(images=[images(count)], **{**defaults, **given}).result


def test_votes_by_rule(store):
    [report] = by_rule(4, score=[0.9, 0.1, 0.52, 0.7], margin=[0.1])
    assert report.startswith("2 liked, 1 disliked, 1 without a vote.")
    assert store.counts(Filter()) == {"liked": 2, "disliked": 1, "undecided": 0}
    by_rule(4, liked=[True, False, False, False])
    assert store.counts(Filter()) == {"liked": 1, "disliked": 3, "undecided": 0}
    for wrong, sentence in (
        ({}, "Connect score or liked"),
        ({"score": [1.0] * 4, "liked": [True] * 4}, "Connect score or liked"),
        ({"score": [1.0]}, "There are 4 images and 1 scores"),
        ({"score": [1.0, torch.nan, 0.0, 0.0]}, "score is"),
        ({"liked": [True, 3, False, False]}, "liked is 3"),
        ({"score": []}, "There are 4 images and 0 scores"),
        ({"score": [1.0] * 4, "tag": []}, "tag is an empty list"),
    ):
        with pytest.raises(ValueError, match=sentence):
            by_rule(4, **wrong)
    assert store.counts(Filter()) == {"liked": 1, "disliked": 3, "undecided": 0}


def test_labels_lie_on_either_side():
    assert labels_of(3, [0.4, 0.5, 0.6], None, 0.5, ABOVE, 0.0) == [-1, -1, 1]
    assert labels_of(3, [0.4, 0.5, 0.6], None, 0.5, BELOW, 0.0) == [1, -1, -1]
    assert labels_of(3, [0.4, 0.5, 0.6], None, 0.5, BELOW, 0.05) == [1, 0, -1]


# What a trainer gets


def test_votes_come_as_they_were_given(store):
    ids = voted(store, "a ball", 3, 2)
    votes, report = loaded()
    assert (votes.liked, votes.disliked, votes.held_out, votes.empty) == (3, 2, (), None)
    for row in votes.rows:
        number = ids.index(row.id)
        assert row.label == (1 if number < 3 else -1)
        assert torch.equal(row.latent, torch.full((1, 4, 8, 8), float(number)))
        assert (row.text, row.cfg, row.policy, row.negative) == ("a ball", 3.0, "p", None)
    assert len({id(row.positive) for row in votes.rows}) == 1
    pairs = {}
    for row in votes.rows:
        pairs.setdefault(row.pair, []).append(row.label)
    assert sorted(map(sorted, (labels for pair, labels in pairs.items() if pair is not None))) == [[-1, 1], [-1, 1]]
    assert pairs[None] == [1]
    assert "3 likes and 2 dislikes; 2 pairs within a prompt." in report
    assert "Warning: there are 3 likes; at least 4 are needed" in report
    votes.check(3, 2)
    for likes, dislikes in ((4, 2), (3, 3)):
        with pytest.raises(ValueError, match=f"At least {likes} and {dislikes} are needed"):
            votes.check(likes, dislikes)
    with pytest.raises(ValueError, match="There are 3 liked and 2 disliked images"):
        votes.check()


def test_pairs_by_name_come_first_and_each_vote_is_in_one():
    given = [("a", 1, "n", "p"), ("b", 1, None, "p"), ("c", -1, "n", "p"), ("d", -1, None, "p"), ("e", -1, None, "q")]
    given += [("f", 1, "three", "q"), ("g", 1, "three", "q"), ("h", -1, "three", "r")]
    pairs = pairs_in([Voted(*each) for each in given])
    assert [(liked.item, disliked.item) for liked, disliked in pairs] == [("a", "c"), ("b", "d"), ("f", "e")]


def test_likes_and_dislikes_of_different_prompts_are_warned_of(store):
    voted(store, "a ball", 5, 0)
    voted(store, "a cube", 0, 4)
    _, report = loaded()
    assert "Warning: 9 of 9 votes are on prompts of which all images were liked, or all disliked" in report
    assert "5 liked, 0 disliked: a ball" in report
    voted(store, "a cone", 5, 5)
    _, report = loaded()
    assert "on prompts of which all" not in report


def test_balance(store):
    voted(store, "a ball", 6, 2)
    voted(store, "a cube", 1, 3)
    assert [(v.liked, v.disliked) for v in [loaded()[0]]] == [(7, 5)]
    assert [(v.liked, v.disliked) for v in [loaded(balance="as many likes as dislikes")[0]]] == [(5, 5)]
    votes, report = loaded(balance="within each prompt")
    assert (votes.liked, votes.disliked) == (3, 3)
    assert "6 of 12 votes are not used." in report


def test_hold_out_by_prompt_where_there_are_many(store):
    for number in range(20):
        voted(store, f"a ball {number}", 2, 2)
    votes, report = loaded(hold_out=0.2)
    train, held = ({row.prompt for row in rows} for rows in (votes.rows, votes.held_out))
    assert not train & held
    assert 4 <= len(votes.held_out) <= 40
    assert f"{len(votes.held_out)} of them held out" in report
    again = loaded(hold_out=0.2)[0]
    assert again.digest == votes.digest
    assert [row.id for row in again.held_out] == [row.id for row in votes.held_out]
    assert loaded(hold_out=0.2, random_seed=1)[0].digest != votes.digest
    voted(store, "a cube", 2, 2)
    more = loaded(hold_out=0.2)[0]
    assert {row.id for row in votes.held_out} <= {row.id for row in more.held_out}
    assert {row.id for row in votes.rows} <= {row.id for row in more.rows}


def test_hold_out_within_one_prompt_keeps_pairs_together(store):
    voted(store, "a ball", 8, 8)
    votes, _ = loaded(hold_out=0.1)
    train, held = ({row.pair for row in rows} for rows in (votes.rows, votes.held_out))
    assert held
    assert not train & held
    assert sum(row.label for row in votes.held_out) == 0


def test_too_few_votes_to_train_on_are_refused_with_the_reason(store):
    voted(store, "a ball", 4, 4)
    loaded()[0].check()
    held = loaded(hold_out=0.5)[0]
    train, out = len(held.rows) // 2, len(held.held_out)
    with pytest.raises(
        ValueError, match=f"{train} liked and {train} disliked .*, and {out} that are held out.*hold_out"
    ):
        held.check()
    with pytest.raises(ValueError, match="4 liked and 4 disliked images to train on. At least 5 and .* more images.$"):
        loaded()[0].check(liked=5)


def test_the_digest_is_of_all_that_is_trained_on(store):
    ids = voted(store, "a ball", 4, 4)
    first = loaded()[0].digest
    store.tag(ids, "x")
    assert loaded()[0].digest == first
    store.vote(ids[:1], -1)
    assert loaded()[0].digest != first


def test_filters_choose(store):
    voted(store, "a ball", 4, 4, tag="x")
    voted(store, "a cube", 4, 4)
    assert {row.text for row in loaded(tag="x")[0].rows} == {"a ball"}
    assert len(loaded(last_days=1.0)[0].rows) == 16
    store.tag([vote.id for vote in store.find(Filter(tag="x"))], " y ")
    assert {row.text for row in loaded(tag="y ")[0].rows} == {"a ball"}


def test_days_choose(monkeypatch, store):
    """Those of the server, whole; the later of the two beginnings, the earlier of the ends."""
    days = {f"2026-03-{day:02}": datetime(2026, 3, day, 12).timestamp() for day in range(1, 4)}
    for date, noon in days.items():
        for module in ("store", "inputs"):
            clock = SimpleNamespace(time=lambda noon=noon: noon)
            monkeypatch.setattr(f"guidekit.nodes.host.votes.{module}.time", clock)
        voted(store, date, 4, 4)
    first, second, third = days

    def chosen(**wanted):
        return {row.text for row in loaded(**wanted)[0].rows}

    assert chosen(from_date=second) == {second, third}
    assert chosen(to_date=second) == {first, second}
    assert chosen(from_date=second, to_date=second) == {second}
    assert chosen(last_days=1.2, from_date=first) == {second, third}
    assert chosen(last_days=5.0, from_date=third) == {third}
    assert Votes.fingerprint_inputs(to_date=second) != Votes.fingerprint_inputs(to_date=first)
    assert "4 likes, 4 dislikes" in run_node_all(ExportVotes, from_date=second, to_date=second)[0]
    with pytest.raises(ValueError, match="There is no vote to train on"):
        loaded(from_date=second, to_date=first)
    for kind in (Votes, ExportVotes):
        for name in ("from_date", "to_date"):
            said = f"{name} is 'March'. It is a date such as 2026-03-01, or empty."
            assert kind.validate_inputs(**{name: "March"}) == said
            with pytest.raises(ValueError, match=said):
                run_node_all(kind, **{name: "March"})
    assert Votes.validate_inputs(from_date=first, to_date=None) is True
    with pytest.raises(ValueError, match="There is no vote to train on"):
        loaded(model_name="none")


def test_the_empty_prompt(store):
    """From the votes, or from the CLIP."""
    voted(store, "", 4, 4)
    votes, report = loaded()
    assert torch.equal(votes.empty[0][0], votes.rows[0].positive[0][0])
    assert "No empty prompt" not in report


def test_damaged_and_bare_votes_are_left_out(store):
    ids = voted(store, "a ball", 4, 4)
    [bare] = voted(store, "a cube", 1, 0, latent=None)
    voted(store, "a cone", 0, 1, recipe=Recipe(), positive=None, latent=torch.full((1, 4, 8, 8), 0.5))
    path = next(store._folder.glob(f"latents/{store.get(ids[:1])[0].latent}*"))
    path.unlink()
    votes, report = loaded()
    assert {row.id for row in votes.rows} == {*ids[1:]}
    assert bare not in {row.id for row in votes.rows}
    assert "1 votes are left out: they came without a latent (connect the VAE)." in report
    assert "1 votes are left out: they came without a prompt, and its text is not known." in report
    assert "1 votes are left out: their files are missing or damaged." in report


def test_latents_of_a_vae_that_overflows_are_left_out(store, monkeypatch):
    from guidekit.tests.host.right import demo

    _, _, vae = demo()
    kept = voted(store, "a ball", 4, 4)
    voted(store, "a cube", 1, 0, latent=None)
    monkeypatch.setattr(vae, "encode", lambda image: torch.full((1, 4, 8, 8), torch.nan))
    votes, report = loaded(vae=vae)
    assert {row.id for row in votes.rows} == {*kept}
    assert "1 votes are left out: the VAE makes NaN of their images." in report


def test_votes_of_different_kinds_of_models_are_refused(store):
    voted(store, "a ball", 4, 4)
    voted(store, "a cube", 1, 1, latent=torch.zeros(1, 16, 8, 8))
    with pytest.raises(ValueError, match="their latents have 4 and 16 channels"):
        loaded()


# Folders


def put(folder, name, seed, caption=None, graph=None):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    info = PngInfo()
    if graph is not None:
        info.add_text("prompt", graph if isinstance(graph, str) else json.dumps(graph))
    Image.fromarray(pixels_of(images(1, seed)[0])).save(path, pnginfo=info)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, "utf-8")


def imported(folder, tag=""):
    return run_node_all(ImportVotes, folder=folder, tag=tag)[0]


def test_folders_with_captions_and_metadata(store, tmp_path, known_files):
    folder = tmp_path / "input" / "mine"
    put(folder, "liked/a.png", 1, caption="a ball\n")
    put(folder, "liked/b.png", 2, graph=GRAPH)
    put(folder, "disliked/c.png", 3, graph="{not json")
    (folder / "disliked" / "d.png").write_bytes(b"no image")
    report = imported("mine", tag="t")
    assert report.startswith("2 likes and 1 dislikes were taken from mine; 3 of the images are new.\n1 were not taken.")
    found = [(vote.recipe.text, vote.recipe.cfg, vote.label) for vote in store.find(Filter(tag="t"))]
    assert sorted(found, key=str) == [("", None, -1), ("a ball", 4.0, 1), ("a ball", None, 1)]


def test_pairs(store, tmp_path):
    folder = tmp_path / "input" / "pairs"
    for seed, name in enumerate(("a.png", "b.png", "c.png", "d.png")):
        put(folder, name, seed)
    (tmp_path / "outside.png").write_bytes((folder / "a.png").read_bytes())
    rows = ["prompt,chosen,rejected", "a ball,a.png,b.png", '"a, cube",c.png,d.png', "x,../../outside.png,b.png"]
    (folder / "pairs.csv").write_text("\n".join(rows), "utf-8")
    report = imported("pairs")
    assert report.splitlines()[0] == "2 likes and 2 dislikes were taken from pairs; 4 of the images are new."
    assert "line 4 of pairs.csv does not name two images of the folder" in report
    pairs = {}
    for vote in store.find(Filter()):
        pairs.setdefault(vote.pair, {})[vote.label] = vote.recipe.text
    assert sorted(pair[1] for pair in pairs.values()) == ["a ball", "a, cube"]
    assert all(pair[1] == pair[-1] for pair in pairs.values())
    (folder / "pairs.csv").write_text("one,two\n1,2\n", "utf-8")
    with pytest.raises(ValueError, match="pairs.csv has the columns one, two. They are prompt, chosen, rejected"):
        imported("pairs")
    rest = "\n".join(["a ball,a.png,b.png"] * 10_000)
    (folder / "pairs.csv").write_text(f'prompt,chosen,rejected\n"an open quote,a.png,b.png\n{rest}', "utf-8")
    with pytest.raises(ValueError, match="pairs.csv cannot be read behind line .*: field larger than"):
        imported("pairs")


def test_what_votes_jsonl_says_is_taken_where_it_is_right(store, tmp_path):
    folder = tmp_path / "input" / "lines"
    put(folder, "a.png", 1)
    line = {"file": "a.png", "label": -1, "text": "a ball", "cfg": 4, "steps": True, "seed": 2**70, "model_name": 3}
    others = ['{"file": "a.png", "label": 0}', '{"file": "../a.png", "label": 1}', "NaN", "[]", '{"label": 1.0}']
    (folder / "votes.jsonl").write_text("\n".join([json.dumps({**line, "tag": "<b>"}), *others]), "utf-8")
    report = imported("lines")
    assert "0 likes and 1 dislikes were taken from lines" in report
    assert "4 were not taken." in report
    [vote] = store.find(Filter())
    assert (vote.recipe.text, vote.recipe.cfg, vote.recipe.steps, vote.recipe.model_name) == ("a ball", 4.0, None, "")
    assert (vote.recipe.seed, vote.label) == (2**70, -1)
    assert "<" not in vote.tag


def test_an_export_that_fails_leaves_nothing(store, tmp_path):
    resource = pytest.importorskip("resource")
    voted(store, "a ball", 2, 2)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        with pytest.raises(StoreError, match="cannot be exported to output/guidekit: .*too large"):
            run_node_all(ExportVotes)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [*(tmp_path / "output" / "guidekit").iterdir()] == []
    assert "2 likes, 2 dislikes and 2 pairs are in output/guidekit/votes." in run_node_all(ExportVotes)
    assert "output/guidekit/votes 2." in run_node_all(ExportVotes)[0]
    with pytest.raises(ValueError, match="The file name is '../x'"):
        run_node_all(ExportVotes, name="../x")


@pytest.mark.parametrize("name", ["../user", "none", "", "/etc"])
def test_folders_that_are_none(name, tmp_path):
    with pytest.raises(ValueError, match="There is no folder"):
        imported(name)
