"""The training of all demo models at the smallest size: it writes all its files, and a failing part does not stop the
others."""

import dataclasses
import json
import sys
import tarfile
import time

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from guidekit.demo.training import everything as whole
from guidekit.demo.training import gather as gathering
from guidekit.demo.training.diffusion import Diffusion
from guidekit.demo.training.draw import CHUNK
from guidekit.demo.training.everything import GIVEN, TINY, Child, Ends, Place, collect, supervise, work_on
from guidekit.demo.training.files import save
from guidekit.demo.training.flat import Flat
from guidekit.demo.training.gather import Gathered, encode, gather, place, save_gathered, scenes_of
from guidekit.demo.training.tune import TASTES, scenes_to
from guidekit.demo.world.autoencoder import Autoencoder
from guidekit.demo.world.judge import Judge
from guidekit.demo.world.render import draw
from guidekit.demo.world.scenes import COLOURS, generator_of, novelty, random_scenes

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    import comfy.cli_args
    import comfy.model_management

    monkeypatch.setattr(comfy.model_management, "in_training", True)
    monkeypatch.setattr(comfy.cli_args.args, "use_pytorch_cross_attention", True)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def somewhere(tmp_path) -> Place:
    torch.manual_seed(1)
    save({"average": Autoencoder().state_dict()}, tmp_path / "in" / "autoencoder.pt")
    (tmp_path / "work").mkdir()
    recipe = dataclasses.replace(TINY, steps=2)
    return Place(
        tmp_path / "in",
        tmp_path / "work",
        tmp_path / "out",
        CPU,
        time.time(),
        3600.0,
        recipe,
        None,
        False,
        True,
        Ends(),
    )


def test_chunks_are_those_that_are_drawn():
    part = place(3, 6)
    scenes = random_scenes(6, generator_of("training", 3), "known")
    assert torch.equal(scenes_of([part]).place, scenes.place)
    assert CHUNK == 500  # what a chunk holds is a part of its seed


@pytest.mark.parametrize("on_device", [True, False])
def test_gathered_scenes_are_encoded_as_they_are_drawn(on_device):
    torch.manual_seed(2)
    model = Autoencoder().eval()
    # The time is over after the first batch of four chunks.
    found = gather(model, CPU, [].append, 1, 0.0, 8, 5, 3, on_device, 7)
    assert len(found.scenes) == len(found.tokens) == len(found.latents) == 12
    assert len(found.images) == 5
    assert torch.equal(found.scenes.place[:3], scenes_of([place(7, 3)]).place)
    images = gathering.as_bytes(draw(found.scenes)[0])
    assert (images[:5].int() - found.images.int()).abs().float().mean() < 0.1
    assert torch.allclose(encode(model, images).float(), found.latents.float(), atol=0.05)


def test_a_device_that_cannot_draw_is_not_asked_to(monkeypatch):
    lines = []
    monkeypatch.setattr(gathering, "draw_on", lambda device, scenes: torch.zeros(16, 3, 64, 64, dtype=torch.uint8))
    assert not gathering._can_draw(CPU, lines.append)

    def broken(device, scenes):
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(gathering, "draw_on", broken)
    assert not gathering._can_draw(CPU, lines.append)
    assert "no kernel image" in lines[-1]


def test_everything_is_made_and_brought_back(somewhere):
    scenes = random_scenes(16, generator_of("training", 0), "known")
    images = gathering.as_bytes(draw(scenes)[0])
    latents = encode(whole.load_autoencoder(somewhere.folder), images)
    save_gathered(Gathered(scenes, torch.from_numpy(place(0, 16).tokens), latents, images), somewhere.work)
    for part in ("judge", "unet"):
        work_on(part, somewhere)
    whole.write_recipe(somewhere)
    lines = []
    collect(somewhere, lines.append)
    assert {p.name for p in somewhere.out.iterdir()} <= {
        "unet.safetensors", "unet_chosen.safetensors", "unet_early.safetensors", "small.tar.gz",
    }  # fmt: skip
    with safe_open(somewhere.out / "unet.safetensors", "pt") as file:
        assert file.metadata()["steps"] == "2"
        assert file.metadata()["vocabulary"].startswith("<pad> ")
    assert all(value.isfinite().all() for value in load_file(somewhere.out / "unet.safetensors").values())
    with tarfile.open(somewhere.out / "small.tar.gz") as tar:
        names = set(tar.getnames())
    assert {"judge.safetensors", "classifier.safetensors", "liked_unet.safetensors", "unet.log", "recipe.json"} <= names
    assert {"bars/unet-unet.png", "bars/unet-bars.json"} <= names
    rows = json.loads((somewhere.work / "bars" / "unet-bars.json").read_text("utf-8"))
    assert {"drawn", "unet, cfg 1", "unet, cfg 4", "unet-0.5, cfg 1"} <= set(rows)
    assert {"both", "mixed up", "saturation", "clipped", "fréchet"} <= set(rows["unet, cfg 4"])

    # Brought back, the models are measured again and their LoRAs tuned, without being trained.
    given = dataclasses.replace(somewhere, work=somewhere.work.parent / "again", weights=somewhere.out, ends=GIVEN)
    given.work.mkdir()
    whole.take_given(given)
    (given.work / "judge.safetensors").write_bytes((somewhere.work / "judge.safetensors").read_bytes())
    work_on("unet", given)
    assert (given.work / "unet.safetensors").read_bytes() == (somewhere.out / "unet.safetensors").read_bytes()
    assert (given.work / "disliked_unet.safetensors").exists()


def test_trainings_go_on_from_what_is_given(somewhere, monkeypatch):
    torch.manual_seed(5)
    weights = {k: v.detach() for k, v in Diffusion("unet").checkpoint().items()}
    whole.save_weights(weights, somewhere.folder / "unet.safetensors", {})
    begun = []
    monkeypatch.setattr(whole, "Flat", lambda *given: begun.append(given[-1]) or Flat(*given))
    place_further = dataclasses.replace(somewhere, weights=somewhere.folder, further=True)
    save({"latents": torch.randn(6, 8, 16, 16).half(), "tokens": torch.from_numpy(place(0, 6).tokens)},
         somewhere.work / "latents.pt")  # fmt: skip
    whole.train_family("unet", place_further, [].append)
    name = "base.diffusion_model.input_blocks.0.0.weight"
    assert torch.equal(begun[0][name], weights["model.diffusion_model.input_blocks.0.0.weight"].half().float())


def test_what_is_brought_back_stays_within_its_limits(somewhere, monkeypatch):
    for name, size in (("unet", 50), ("dit", 60), ("unet-0.08", 30), ("unet-0.5", 40)):
        (somewhere.work / f"{name}.safetensors").write_bytes(bytes(size))
    (somewhere.work / "unet-chosen.txt").write_text("unet-0.5")
    (somewhere.work / "latents.pt").write_bytes(bytes(10))
    lines = []
    collect(somewhere, lines.append)
    small = (somewhere.out / "small.tar.gz").stat().st_size
    found = {p.name: p.stat().st_size for p in somewhere.out.iterdir()}
    assert found == {
        "small.tar.gz": small, "unet.safetensors": 50, "dit.safetensors": 60, "unet_chosen.safetensors": 40,
        "unet_early.safetensors": 30,
    }  # fmt: skip
    for path in somewhere.out.iterdir():
        path.unlink()
    monkeypatch.setattr(whole, "ALL", small + 120)
    collect(somewhere, lines.append)
    assert {p.name for p in somewhere.out.iterdir()} == {"small.tar.gz", "unet.safetensors", "dit.safetensors"}
    assert any("unet_chosen.safetensors was left out" in line for line in lines)


def child(name: str, code: str) -> Child:
    return Child(name, [sys.executable, "-c", code])


def test_a_part_that_fails_is_begun_again_and_stops_nobody(somewhere):
    children = [
        child("once", "import sys; sys.exit('--eager' not in sys.argv)"),
        child("always", "import sys; sys.exit('out of luck')"),
        child("never", "print('fine')"),
    ]
    for each in children:
        each.begin(somewhere.work / f"{each.name}.out")
    lines = []
    supervise(children, somewhere, lines.append)
    assert [(c.name, c.state(), c.tries) for c in children] == [
        ("once", "done", 2), ("always", "failed", 2), ("never", "done", 1),
    ]  # fmt: skip
    assert "out of luck" in (somewhere.work / "always.out").read_text()


def test_a_process_that_hangs_is_stopped(somewhere):
    hanging = child("hanging", "import time; time.sleep(600)")
    hanging.begin(somewhere.work / "hanging.out")
    supervise([hanging], dataclasses.replace(somewhere, begun=time.time() - 3600), [].append)
    assert hanging.process.returncode is not None


def test_tastes_hold_to_what_training_holds_out():
    for taste, (colour, _) in TASTES.items():
        scenes = scenes_to(taste, 30)
        assert len(scenes) == 30
        assert (scenes.colour[scenes.present] == COLOURS.index(colour)).all()
        assert not any(part.any() for part in novelty(scenes))


def test_an_earlier_judge_judges_where_there_is_no_new_one(somewhere):
    torch.manual_seed(4)
    earlier, lines = Judge(), []
    save_file(earlier.state_dict(), somewhere.folder / whole.FALLBACK)
    late = dataclasses.replace(somewhere, begun=time.time() - 3600)
    judge = whole.load_judge(late, lines.append)
    assert all(torch.equal(value, earlier.state_dict()[name]) for name, value in judge.state_dict().items())
    assert "earlier" in lines[0]
