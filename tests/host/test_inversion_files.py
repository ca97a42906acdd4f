"""Inversions as files: what comes back is what was saved, and what is not such a file is said."""

import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from guidekit.benchmarks._nodes import run_node
from guidekit.nodes.host import files
from guidekit.nodes.load_inversion import LoadInversion
from guidekit.nodes.save_inversion import SaveInversion
from guidekit.tests.host import probes, tiny
from guidekit.tests.host.test_exact import inverted, picture, sampled
from guidekit.tests.host.test_trajectory import recorded, replayed

KEY = "guidekit_inversion"


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """output/guidekit of this test."""
    monkeypatch.setattr("folder_paths.get_output_directory", lambda: str(tmp_path / "output"))
    monkeypatch.setattr("folder_paths.get_input_directory", lambda: str(tmp_path / "input"))
    return tmp_path / "output" / "guidekit"


def saved(state, name="kept"):
    return run_node(SaveInversion, inverted=state, name=name)


def loaded(name):
    return run_node(LoadInversion, file=name)


@pytest.mark.parametrize("family", ["unet", "flux", "wan"])
@pytest.mark.parametrize("settings", [{}, {"method": "o-belm", "keep_trajectory": True}, {"method": "bdia", "p": 0.0}])
def test_an_inversion_comes_back(family, settings):
    model = tiny.model(family)
    state = inverted(model, family, batch=2, **settings)
    again = loaded(saved(state))
    found, wanted = again[KEY], state[KEY]
    assert torch.equal(again["samples"], state["samples"])
    assert torch.equal(found.pair.x, wanted.pair.x)
    assert torch.equal(found.pair.y, wanted.pair.y)
    assert found.pair.x.dtype == torch.float64
    assert (found.method, found.p, found.gamma, found.model) == (wanted.method, wanted.p, wanted.gamma, wanted.model)
    assert torch.equal(sampled(model, family, again), sampled(model, family, state))
    assert probes.distance(sampled(model, family, again), picture(family, 2)) <= 1e-9
    mask = torch.zeros(1, 64, 64)
    if "keep_trajectory" in settings:
        assert torch.equal(sampled(model, family, again, mask), sampled(model, family, state, mask))
    else:
        with pytest.raises(ValueError, match="keep_trajectory"):
            sampled(model, family, again, mask)


def test_a_trajectory_comes_back():
    model = tiny.model("flux")
    state = recorded(model, "flux")
    again = loaded(saved(state))
    assert torch.equal(again[KEY].latents, state[KEY].latents)
    assert all(
        torch.equal(*pair) for pair in zip(*(replayed(model, "flux", each, prompt=12) for each in (again, state)))
    )


def test_another_model_is_refused():
    name = saved(inverted(tiny.model("unet"), "unet"))
    with pytest.raises(ValueError, match="was inverted with model"):
        sampled(tiny.model("flux"), "flux", loaded(name))


def test_names(folder):
    state = inverted(tiny.model("unet"), "unet")
    assert saved(state, "my cat.1") == "my cat.1.safetensors"
    assert [path.name for path in folder.iterdir()] == ["my cat.1.safetensors"]
    assert LoadInversion.define_schema().inputs[0].options == ["my cat.1.safetensors"]
    for name in ("../out", "a/b", "", ".hidden", "c:\\x"):
        with pytest.raises(ValueError, match="The file name is"):
            saved(state, name)
    for name in ("../my cat.1.safetensors", "nothing.safetensors", "/etc/passwd"):
        with pytest.raises(ValueError, match="It has: my cat.1.safetensors"):
            loaded(name)
        assert LoadInversion.fingerprint_inputs(file=name) is None


def test_a_file_in_the_input_folder(folder):
    state = inverted(tiny.model("unet"), "unet")
    there = folder / saved(state)
    put = folder.parents[1] / "input" / "guidekit" / "shared" / "theirs.safetensors"
    put.parent.mkdir(parents=True)
    there.rename(put)
    assert torch.equal(loaded("shared/theirs.safetensors")["samples"], state["samples"])


def test_a_file_that_was_saved_anew_is_another_input(folder):
    name = saved(inverted(tiny.model("unet"), "unet"))
    before = LoadInversion.fingerprint_inputs(file=name)
    os.utime(folder / name, (1.0, 1.0))
    assert before is not None
    assert LoadInversion.fingerprint_inputs(file=name) != before


def test_latents_that_carry_nothing():
    with pytest.raises(ValueError, match="Connect the output of Exact Inversion or Trajectory Record"):
        saved({"samples": picture("unet")})


def test_an_interrupted_save_leaves_the_old_file(folder, monkeypatch):
    model = tiny.model("unet")
    name = saved(inverted(model, "unet"))
    before = (folder / name).read_bytes()

    def broken(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(files, "save_file", broken)
    with pytest.raises(OSError, match="disk full"):
        saved(inverted(model, "unet", steps=5))
    assert [path.name for path in folder.iterdir()] == [name]
    assert (folder / name).read_bytes() == before


def changed(folder, name, tensors=lambda t: t, words=lambda d: d):
    """The file with something else in it."""
    path = folder / name
    with safe_open(path, "pt") as file:
        inside = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        description = json.loads(file.metadata()["guidekit"])
    save_file(tensors(inside), path, metadata={"guidekit": json.dumps(words(description))})


def without(name):
    return lambda some: {key: value for key, value in some.items() if key != name}


BAD = {
    "no y": ({"tensors": without("y")}, "it has no y"),
    "no picture": ({"tensors": without("picture")}, "wanted is a file of this pack"),
    "something else": ({"tensors": lambda t: {**t, "z": t["x"].clone()}}, "wanted is a file of this pack"),
    "latents of a trajectory": (
        {"words": lambda d: {**d, "made by": "Trajectory Record"}},
        "it has no latents",
    ),
    "another maker": ({"words": lambda d: {**d, "made by": "me"}}, "it was made by 'me'"),
    "another method": ({"words": lambda d: {**d, "method": "ddim"}}, "its method is 'ddim', not one of edict"),
    "p is a word": ({"words": lambda d: {**d, "p": "much"}}, "its p is 'much', not a number"),
    "p is too large": ({"words": lambda d: {**d, "p": 2}}, "p is 2"),
    "p is true": ({"words": lambda d: {**d, "p": True}}, "its p is True"),
    "no model": ({"words": without("model")}, "which model it was made with"),
    "half a model": ({"words": lambda d: {**d, "model": {"model": "x"}}}, "which model it was made with"),
    "rising sigmas": ({"tensors": lambda t: {**t, "sigmas": t["sigmas"].flip(0).clone()}}, "falling"),
    "x of another shape": ({"tensors": lambda t: {**t, "x": t["x"][..., :4].clone()}}, "x has shape"),
    "picture of another shape": ({"tensors": lambda t: {**t, "picture": t["y"][..., :4].clone()}}, "picture has shape"),
    "trajectory of another length": (
        {"tensors": lambda t: {**t, "trajectory": t["x"][None].clone()}},
        "trajectory has shape",
    ),
    "not a number": ({"tensors": lambda t: {**t, "x": t["x"] * torch.nan}}, "holds NaN"),
    "one step of two": (
        {
            "tensors": lambda t: {**t, "sigmas": t["sigmas"][:2].clone()},
            "words": lambda d: {**d, "method": "bdia"},
        },
        "needs more steps",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_files_that_are_something_else(what, folder):
    name = saved(inverted(tiny.model("unet"), "unet"))
    changes, sentence = BAD[what]
    changed(folder, name, **changes)
    with pytest.raises(ValueError, match=sentence):
        loaded(name)


def test_a_trajectory_of_another_length(folder):
    name = saved(recorded(tiny.model("unet"), "unet"))
    changed(folder, name, tensors=lambda t: {**t, "latents": t["latents"][1:].clone()})
    with pytest.raises(ValueError, match="latents has shape"):
        loaded(name)


@pytest.mark.parametrize("content", [b"", b"half a file", b"\xff" * 64])
def test_files_that_cannot_be_read(content, folder):
    folder.mkdir(parents=True)
    (folder / "bad.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="bad.safetensors cannot be read"):
        loaded("bad.safetensors")


def test_views_of_one_tensor():
    """As latents are that a model takes as they are."""
    whole = torch.arange(12.0).reshape(3, 4)
    files.INVERSIONS.save("views", {"a": whole, "b": whole[1], "c": whole.T}, {})
    found, _ = files.INVERSIONS.load("views.safetensors", ("a", "b", "c"))
    assert torch.equal(found["a"], whole)
    assert torch.equal(found["b"], whole[1])
    assert torch.equal(found["c"], whole.T)
