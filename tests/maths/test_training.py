"""Trainings of the demo models can be stopped anywhere; the judge finds what is there."""

import dataclasses

import pytest
import torch
from torch import nn

from guidekit.demo.training import judge as judging
from guidekit.demo.training import state
from guidekit.demo.training.files import load, load_scenes, save_scenes
from guidekit.demo.training.latents import WORDINGS, say
from guidekit.demo.training.optimizer import Optimizer
from guidekit.demo.training.state import Training, learning_rate
from guidekit.demo.world.judge import OBJECT, SLOTS, WHOLE, Judge, find
from guidekit.demo.world.scenes import generator_of, random_scenes
from guidekit.demo.world.vocabulary import END, MAX_LENGTH, PAD, START, VOCABULARY

STEPS = 7


class KilledError(Exception):
    pass


class Loss:
    """A random regression that kills the training at a given step."""

    def __init__(self, model: nn.Module, kill_at: int | None = None):
        self.model, self.kill_at, self.calls = model, kill_at, 0

    def __call__(self, generator: torch.Generator) -> torch.Tensor:
        self.calls += 1
        if self.calls == self.kill_at:
            raise KilledError
        x = torch.randn((4, 6), generator=generator)
        return (self.model(x) - x[:, :2]).square().mean()


def training(folder) -> Training:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 8), nn.SiLU(), nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 2))
    return Training("toy", model, Optimizer(model, ("0.weight", "4.weight")), folder, seed=5)


def test_a_killed_training_goes_on_exactly(tmp_path, monkeypatch):
    monkeypatch.setattr(state, "SAVE_EVERY", -1)  # after every step
    whole = training(tmp_path / "whole")
    whole.run(STEPS, Loss(whole.module), every=2, keep=(4,))
    killed = training(tmp_path / "killed")
    with pytest.raises(KilledError):
        killed.run(STEPS, Loss(killed.module, kill_at=4), every=2, keep=(4,))
    (tmp_path / "killed" / "toy.pt.1.part").write_bytes(b"half a file")
    again = training(tmp_path / "killed")
    torch.manual_seed(99)  # nothing depends on it
    again.run(STEPS, Loss(again.module), every=2, keep=(4,))
    assert again.step == whole.step == STEPS
    for name, weight in whole.module.state_dict().items():
        assert torch.equal(weight, again.module.state_dict()[name]), name
        assert torch.equal(whole.average.weights[name], again.average.weights[name]), name
        kept = [load(tmp_path / folder / "toy-4.pt")[name] for folder in ("whole", "killed")]
        assert torch.equal(*kept), name
    lines = [(tmp_path / folder / "toy.log").read_text("utf-8").splitlines() for folder in ("whole", "killed")]
    assert any("resumed at step 3 of 7" in line for line in lines[1])
    losses = [[line.split("loss")[1].split()[0] for line in part if "loss" in line] for part in lines]
    assert losses[0] == losses[1]


def test_the_learning_rate_rises_stays_and_falls():
    rates = [learning_rate(step, 1000) for step in range(1000)]
    assert rates[0] == 1 / 200
    assert rates[199:700] == [1.0] * 501
    assert rates[850] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(1 / 300)


def test_scenes_are_read_as_they_were_written(tmp_path):
    scenes = random_scenes(5, generator_of("tests", 20))
    save_scenes(scenes, tmp_path / "a" / "scenes.pt", images=torch.arange(3))
    read, more = load_scenes(tmp_path / "a" / "scenes.pt")
    assert torch.equal(read.place, scenes.place)
    assert torch.equal(read.jitter, scenes.jitter)
    assert torch.equal(more["images"], torch.arange(3))


def test_captions_as_tokens():
    scenes = random_scenes(6, generator_of("tests", 21))
    tokens = say(scenes, 0)
    assert tokens.shape == (6, WORDINGS + 1, MAX_LENGTH)
    assert (tokens[..., 0] == START).all()
    assert ((tokens == END).sum(-1) == 1).all()
    assert tokens[0, -1].tolist() == [START, END, *[PAD] * (MAX_LENGTH - 2)]
    words = [VOCABULARY[t] for t in tokens[0, 0].tolist() if t > END]
    assert words[0] in ("a", "an")


# The judge


def perfect(scenes) -> dict[str, torch.Tensor]:
    """What a judge without fault says of scenes."""
    wanted = judging.targets(scenes).take(torch.arange(len(scenes)))
    said = {"peak": torch.logit(wanted.hill, eps=1e-4), "features": torch.zeros(len(scenes), 1)}
    for name, classes in OBJECT.items():
        said[name] = nn.functional.one_hot(wanted.cells[name].clamp(min=0), len(classes)).movedim(-1, 1).float()
    for name, classes in WHOLE.items():
        said[name] = nn.functional.one_hot(wanted.whole[name], len(classes)).float()
    return said


def test_solids_are_found_where_they_are():
    scenes = random_scenes(400, generator_of("tests", 22))
    found = find(lambda _images: perfect(scenes), torch.empty(0))
    assert found.right(scenes, *OBJECT).all()
    for name in OBJECT:
        assert (getattr(found, name)[~scenes.present] == -1).all()
    for name in WHOLE:
        assert torch.equal(getattr(found, name), getattr(scenes, name))


def test_what_is_missing_merged_or_wrong_is_not_right():
    scenes = random_scenes(50, generator_of("tests", 23), count=2)
    said = perfect(scenes)
    swapped = perfect(scenes.take(torch.arange(50).roll(1)))
    wrong = find(lambda _images: said | {"colour": swapped["colour"]}, torch.empty(0))
    assert wrong.right(scenes, "shape").all()
    same = (scenes.colour == scenes.colour.roll(1, 0)).all(1)
    assert not wrong.right(scenes, "colour")[~same].all()
    none = find(lambda _images: said | {"peak": torch.full_like(said["peak"], -9.0)}, torch.empty(0))
    assert not none.right(scenes).any()
    assert (none.shape == -1).all()
    assert (none.count == 0).all()
    three = random_scenes(50, generator_of("tests", 24), count=3)
    assert not find(lambda _images: perfect(three), torch.empty(0)).right(scenes).any()


def test_the_judge_learns():
    """A few steps on a few images; every weight takes part."""
    torch.manual_seed(1)
    judge = Judge()
    scenes = random_scenes(8, generator_of("tests", 25))
    images = torch.rand((8, 3, 64, 64), generator=generator_of("tests", 26))
    optimizer = Optimizer(judge, judging.ENDS)
    losses = []
    for _ in range(6):
        judge.zero_grad()
        loss = judging.judge_loss(judge, images, judging.targets(scenes))
        loss.backward()
        optimizer.step(1.0)
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert all(p.grad is not None and p.grad.any() for p in judge.parameters())
    assert find(judge, images).shape.shape == (8, SLOTS)


def test_spoiled_images_stay_images():
    images = torch.rand((8, 3, 64, 64), generator=generator_of("tests", 27))
    spoilt = judging.spoil(images, generator_of("tests", 28))
    assert spoilt.shape == images.shape
    assert spoilt.min() >= 0
    assert spoilt.max() <= 1
    assert ((spoilt - images).abs().amax((1, 2, 3)) > 0.05).all()


def test_mixed_up_is_what_belongs_elsewhere():
    scenes = random_scenes(200, generator_of("tests", 29), count=2)
    found = find(lambda _images: perfect(scenes), torch.empty(0))
    assert not found.mixed_up(scenes).any()
    swapped = dataclasses.replace(found, colour=found.colour[:, [1, 0, 2]])
    differ = scenes.colour[:, 0] != scenes.colour[:, 1]
    assert torch.equal(swapped.mixed_up(scenes), differ)  # another colour on each solid, but the same colours
    wrong = dataclasses.replace(found, colour=torch.where(scenes.present, (found.colour + 1) % 8, -1))
    all_else = scenes.colour.sort(1).values != ((scenes.colour + 1) % 8 * scenes.present).sort(1).values
    assert not wrong.mixed_up(scenes)[all_else.any(1)].any()
    three = dataclasses.replace(swapped, count=torch.full_like(swapped.count, 3))
    assert not three.mixed_up(scenes).any()


def test_named_solids_are_found_wherever_they_stand():
    scenes = random_scenes(200, generator_of("tests", 35), count=3)
    found = find(lambda _images: perfect(scenes), torch.empty(0))
    places = [2, 0, 1]
    moved = dataclasses.replace(found, shape=found.shape[:, places], colour=found.colour[:, places])
    assert (moved.named(scenes) == 1).all()
    one_gone = dataclasses.replace(found, shape=found.shape * torch.tensor([1, 1, 0]) - torch.tensor([0, 0, 1]))
    alike = ((scenes.shape == scenes.shape[:, 2:]) & (scenes.colour == scenes.colour[:, 2:]))[:, :2].any(1)
    assert torch.equal(one_gone.named(scenes), torch.where(alike, 1.0, 2 / 3))
    single = random_scenes(50, generator_of("tests", 36), count=1)
    assert (find(lambda _images: perfect(single), torch.empty(0)).named(single) == 1).all()
