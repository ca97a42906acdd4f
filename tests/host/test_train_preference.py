"""The nodes that train and score: what they save, say and refuse."""

import dataclasses
import json
from pathlib import Path

import comfy.model_management
import folder_paths
import pytest
import torch
from safetensors import safe_open

from guidekit.benchmarks._nodes import run_node_all
from guidekit.nodes import train_preference
from guidekit.nodes.host.files.folders import Folder
from guidekit.nodes.host.training import state_file
from guidekit.nodes.host.votes.digest import policy_digest
from guidekit.nodes.preference_lora_loader import PreferenceLoraLoader
from guidekit.nodes.train_preference import BETAS, DISLIKED, TrainPreference
from guidekit.tests.host import tiny
from guidekit.tests.host.votes import swapped, vote_set

FEW = {"steps": 3, "images_per_step": 4, "images_at_once": 4, "checkpointing": False, "resume": False}


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    """models/loras, and the states of trainings."""
    _, endings = folder_paths.folder_names_and_paths["loras"]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path / "loras")], endings))
    monkeypatch.setattr(state_file, "TRAININGS", Folder("trainings", lambda: [str(tmp_path / "trainings")]))


def train(family="unet", **given):
    """As the host executes nodes: in torch's inference mode."""
    given = {"model": tiny.model(family), "votes": vote_set(family), **FEW, **given}
    with torch.inference_mode():
        return run_node_all(TrainPreference, **given)


def lora_file(name: str) -> Path:
    return Path(folder_paths.get_folder_paths("loras")[0]) / name


@pytest.mark.parametrize("objective", BETAS)
def test_trains_saves_and_gives_the_model(objective):
    model = tiny.model("unet")
    tuned, file, curve, report = train(model=model, votes=vote_set("unet", held_out=4), objective=objective, name="a b")
    assert file == str(Path("guidekit", "a b.safetensors"))
    assert file in folder_paths.get_filename_list("loras")
    assert f"{file}: {objective} on 4 likes and 4 dislikes, 3 steps" in report
    assert curve.shape[0] == 1
    assert curve.shape[-1] == 3
    loaded, _ = run_node_all(PreferenceLoraLoader, model=model, file=file)
    assert policy_digest(loaded) == policy_digest(tuned) != policy_digest(model)
    assert not torch.equal(tiny.sample(tuned, "unet"), tiny.sample(model, "unet"))
    torch.testing.assert_close(tiny.sample(tuned, "unet"), tiny.sample(loaded, "unet"))


def test_the_file_says_what_it_is():
    train("flux", name="said", rank=4, beta=30.0)
    with safe_open(lora_file("guidekit/said.safetensors"), "pt") as file:
        said = file.metadata()
        names = set(file.keys())
    assert {"ss_network_dim": "4", "ss_network_alpha": "4.0", "ss_base_model_version": "flux1"}.items() <= said.items()
    assert {"modelspec.architecture": "flux-1-dev/lora", "modelspec.title": "said"}.items() <= said.items()
    about = json.loads(said["guidekit"])
    assert {"objective": "NFT", "beta": 30.0, "liked": 4, "disliked": 4, "steps": 3}.items() <= about.items()
    assert about["model"] == policy_digest(tiny.model("flux"))
    assert all(name.startswith("diffusion_model.") for name in names)
    assert "modelspec.prediction_type" not in said


@pytest.mark.parametrize(("likes", "dislikes"), [(3, 4), (4, 3)])
def test_too_few_votes_are_refused(likes, dislikes):
    rows = vote_set("unet", 16).rows
    liked, disliked = ([row for row in rows if row.label == label] for label in (1, -1))
    votes = dataclasses.replace(vote_set("unet"), rows=(*liked[:likes], *disliked[:dislikes]))
    with pytest.raises(ValueError, match=f"There are {likes} liked and {dislikes} disliked images"):
        train(votes=votes)


def test_votes_on_images_of_another_model_are_refused():
    with pytest.raises(ValueError, match="The latent of a vote has shape"):
        train("sd3", votes=vote_set("unet"))


def test_votes_on_prompts_of_another_encoder_are_refused():
    """SD1.5 and SDXL have latents of the same channels."""
    votes = vote_set("unet")
    rows = tuple(dataclasses.replace(row, positive=[[torch.zeros(1, 7, 24), {}]]) for row in votes.rows)
    with pytest.raises(ValueError, match="The prompt of a vote has 24 channels per token, and BaseModel takes 16"):
        train(votes=dataclasses.replace(votes, rows=rows))


def test_where_votes_have_gone_is_said():
    votes = vote_set("unet")
    rows = tuple(dataclasses.replace(row, policy="elsewhere") for row in votes.rows)
    told = "8 votes are on images of another model .*; they are left out. There are 0 liked and 0 disliked images"
    with pytest.raises(ValueError, match=told):
        train(votes=dataclasses.replace(votes, rows=rows), votes_on_others=0.0)


def test_pairs_are_wanted_by_dpo():
    votes = vote_set("unet")
    votes = dataclasses.replace(votes, rows=tuple(dataclasses.replace(row, pair=None) for row in votes.rows))
    with pytest.raises(ValueError, match="no prompt has both"):
        train(votes=votes, objective="DPO")
    assert "4 pairs." in train(objective="DPO")[3]


def test_dislikes_are_learned_by_swapping():
    factors = []
    for votes, learn in ((vote_set("unet"), DISLIKED), (swapped(vote_set("unet")), train_preference.LIKED)):
        _, file, _, _ = train(votes=votes, learn=learn, name="swapped")
        with safe_open(lora_file(file), "pt") as tensors:
            factors.append({name: tensors.get_tensor(name) for name in tensors.keys()})  # noqa: SIM118
    assert all(torch.equal(tensor, factors[1][name]) for name, tensor in factors[0].items())


def test_says_what_has_no_effect():
    report = train(objective="SFT on likes", beta=3.0, liked_share=0.8, reference_point="none")[3]
    assert "reference_point, beta and liked_share are not used by SFT on likes." in report
    assert "reference_point is not used by DiffusionNFT." in train(reference_point="none")[3]
    assert "not used" not in train(objective="KTO", reference_point="none")[3]


def test_votes_on_images_of_others():
    votes = vote_set("unet", 16)
    rows = tuple(dataclasses.replace(row, policy="elsewhere" if i < 4 else "") for i, row in enumerate(votes.rows))
    votes = dataclasses.replace(votes, rows=rows)
    assert (
        "4 votes are on images of another model or LoRA than the one trained; they count 0.5." in train(votes=votes)[3]
    )
    report = train(votes=votes, votes_on_others=0.0)[3]
    assert "they are left out" in report
    assert "6 likes and 6 dislikes" in report


def test_an_interrupted_training_goes_on_when_queued_again(monkeypatch):
    given = {"steps": 6, "name": "goes on", "resume": True}
    whole = train(**given)
    with safe_open(lora_file(whole[1]), "pt") as file:
        wanted = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    lora_file(whole[1]).unlink()
    Path(state_file.TRAININGS.path_of("goes on.safetensors")).unlink()

    class Stops(train_preference._Show):
        def __call__(self, trainer, session, point):
            super().__call__(trainer, session, point)
            if point.step == 2:
                comfy.model_management.interrupt_current_processing()

    with monkeypatch.context() as patched:
        patched.setattr(train_preference, "_Show", Stops)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            train(**given)
    assert not lora_file(whole[1]).exists()
    again = train(**given)
    assert "It went on from step 2." in again[3]
    with safe_open(lora_file(again[1]), "pt") as file:
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in wanted.items())
    assert "It went on from step 6." in train(**given)[3]
    assert "the training that was kept has 6 steps already" in train(**{**given, "steps": 2})[3]
    assert "It went on" not in train(**{**given, "learning_rate": 2e-3})[3]


def test_the_next_round_begins_with_the_lora_of_the_last():
    model = tiny.model("unet")
    tuned, file, _, _ = train(model=model, name="round 1", learning_rate=1e-2)
    votes = vote_set("unet")
    rows = tuple(dataclasses.replace(row, policy=policy_digest(tuned)) for row in votes.rows)
    votes = dataclasses.replace(votes, rows=rows)
    report = train(model=model, votes=votes, name="round 2", go_on_from=file)[3]
    assert "another model or LoRA" not in report
    assert "another model or LoRA" in train(model=model, votes=votes, name="round 2")[3]


def test_names_of_files_are_checked_before_anything_is_trained():
    with pytest.raises(ValueError, match="The file name is"):
        train(name="../x")


def test_a_state_that_cannot_be_written_is_said_before(tmp_path):
    (tmp_path / "trainings").write_text("a file")
    with pytest.raises(ValueError, match="cannot be saved in trainings: trainings is a file and no folder"):
        train()


class Shown:
    """What a node's page is sent: (step, steps, image or None)."""

    def __init__(self, monkeypatch):
        self.sent = []
        monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", self)

    def __call__(self, value, total, preview, node_id=None):
        self.sent.append((value, total, preview and preview[1]))

    @property
    def images(self):
        return [image for _, _, image in self.sent if image is not None]


def test_the_course_is_shown_while_it_runs(monkeypatch):
    shown = Shown(monkeypatch)
    monkeypatch.setattr(train_preference, "_SHOW_EVERY", -1.0)  # with an image, the host sends every step
    train(votes=vote_set("unet", held_out=4), steps=3)
    assert [(step, steps) for step, steps, _ in shown.sent] == [(1, 3), (2, 3), (3, 3)]
    first, *_, last = shown.images
    assert last.height > first.height  # of the votes that are held out is known more at the end


@pytest.mark.parametrize("family", ["unet", "wan"])
def test_previews_are_made_of_the_model_in_training(family, monkeypatch):
    """Below the curve; of prompts that the votes have."""
    shown = Shown(monkeypatch)
    train(family, preview_every=1, steps=1)
    plain = Shown(monkeypatch)
    train(family, steps=1)
    assert shown.images[-1].height > plain.images[-1].height


def test_saturated_votes_are_said(monkeypatch):
    votes = vote_set("unet")  # of bright and dark images, so that they are told apart
    rows = tuple(dataclasses.replace(row, latent=0.3 * row.latent + 8.0 * row.label) for row in votes.rows)
    given = {
        "votes": dataclasses.replace(votes, rows=rows),
        "steps": 12,
        "learning_rate": 2e-2,
        "warm_up": 0,
        "objective": "KTO",
    }
    assert "Warning: most votes are saturated" in train(**given, beta=1e5)[3]
    assert "saturated" not in train(**given, beta=1e-2)[3]


def test_a_missing_empty_prompt_is_said():
    votes = dataclasses.replace(vote_set("unet"), empty=None)
    assert "connect the CLIP to Load Votes" in train(votes=votes)[3]
    assert "connect the CLIP" not in train()[3]
