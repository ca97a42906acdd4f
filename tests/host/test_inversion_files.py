"""Inversions as files: what comes back is what was saved, and what is not such a file is said."""

import json
import math
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from guidekit.benchmarks._nodes import run_node
from guidekit.nodes.host.files import folders as files
from guidekit.nodes.load_inversion import LoadInversion
from guidekit.nodes.save_inversion import SaveInversion
from guidekit.tests.host import probes, tiny
from guidekit.tests.host.test_exact import image, inverted, sampled
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
    assert probes.distance(sampled(model, family, again), image(family, 2)) <= 1e-9
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
        saved({"samples": image("unet")})


def changed(folder, name, tensors=lambda t: t, words=lambda d: d):
    """The file with something else in it, and as earlier versions wrote it: without a checksum."""
    path = folder / name
    with safe_open(path, "pt") as file:
        inside = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        description = json.loads(file.metadata()["guidekit"])
    words = words(description)
    text = words if isinstance(words, str) else json.dumps(words)
    save_file(tensors(inside), path, metadata={"guidekit": text})


def without(name):
    return lambda some: {key: value for key, value in some.items() if key != name}


def nested(depth):
    return [nested(depth - 1)] if depth else []


BAD = {
    "no y": ({"tensors": without("y")}, "it has no y"),
    "no image": ({"tensors": without("image")}, "wanted is a file of this pack"),
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
    "p is beyond every float": ({"words": lambda d: {**d, "p": 10**400}}, "its p is 1000.*, not a number"),
    "gamma is a list of lists": ({"words": lambda d: {**d, "gamma": nested(400)}}, "its gamma is .*, not a number"),
    "p is NaN": ({"words": lambda d: {**d, "p": math.nan}}, "cannot be read: in its description it holds NaN"),
    "a maker that is a list": ({"words": lambda d: {**d, "made by": []}}, r"it was made by \[\]"),
    "a method that is a list": ({"words": lambda d: {**d, "method": [["edict"]]}}, "its method is"),
    "an endless method": ({"words": lambda d: {**d, "method": "e" * 10_000}}, "its method is"),
    "a nested description": ({"words": lambda d: "[" * 100_000}, "in its description it is nested too deeply"),
    "a list as description": ({"words": lambda d: []}, "wanted is a file of this pack"),
    "no text as description": ({"words": lambda d: "{"}, "cannot be read: in its description"),
    "two methods": (
        {"words": lambda d: json.dumps(d)[:-1] + ', "method": "bdia"}'},
        "in its description it names something twice",
    ),
    "a model of numbers": (
        {"words": lambda d: {**d, "model": {**d["model"], "network": 5}}},
        "which model it was made",
    ),
    "a model that is a list": ({"words": lambda d: {**d, "model": [1]}}, "which model it was made with"),
    "an endless model": (
        {"words": lambda d: {**d, "model": {**d["model"], "model": "m" * 10_000}}},
        "which model it was made with",
    ),
    "float8": ({"tensors": lambda t: {**t, "x": t["x"].to(torch.float8_e4m3fn)}}, "has x in F8_E4M3; wanted is one of"),
    "integers": ({"tensors": lambda t: {**t, "x": t["x"].int(), "y": t["y"].int()}}, "has . in I32; wanted is one of"),
    "integer sigmas": ({"tensors": lambda t: {**t, "sigmas": torch.arange(4, -1, -1)}}, "has sigmas in I64"),
    "truth": ({"tensors": lambda t: {**t, "image": t["image"] > 0}}, "has image in BOOL"),
    "sigmas of two dimensions": ({"tensors": lambda t: {**t, "sigmas": t["sigmas"][:, None]}}, "sigmas has shape"),
    "one sigma": ({"tensors": lambda t: {**t, "sigmas": t["sigmas"][0].clone()}}, "sigmas has shape"),
    "no sigmas": ({"tensors": lambda t: {**t, "sigmas": torch.zeros(0)}}, "at least two, falling"),
    "sigmas below zero": ({"tensors": lambda t: {**t, "sigmas": t["sigmas"] - 1}}, "falling, down to 0"),
    "sigmas that are one in float32": (
        {"tensors": lambda t: {**t, "sigmas": torch.tensor([1 + 1e-12, 1, 0], dtype=torch.float64)}},
        "falling",
    ),
    "very many sigmas": ({"tensors": lambda t: {**t, "sigmas": torch.ones(100_000)}}, "falling"),
    "infinity": ({"tensors": lambda t: {**t, "sigmas": t["sigmas"] / 0}}, "holds NaN or infinity in sigmas"),
    "latents of two dimensions": (
        {"tensors": lambda t: {**t, **{k: torch.zeros(4, 4) for k in ("shown", "image", "x", "y")}}},
        "shown has shape",
    ),
    "no latents": (
        {"tensors": lambda t: {**t, **{k: torch.zeros(0, 4, 8, 8) for k in ("shown", "image", "x", "y")}}},
        "shown has shape",
    ),
    "no model": ({"words": without("model")}, "which model it was made with"),
    "half a model": ({"words": lambda d: {**d, "model": {"model": "x"}}}, "which model it was made with"),
    "rising sigmas": ({"tensors": lambda t: {**t, "sigmas": t["sigmas"].flip(0).clone()}}, "falling"),
    "x of another shape": ({"tensors": lambda t: {**t, "x": t["x"][..., :4].clone()}}, "x has shape"),
    "image of another shape": ({"tensors": lambda t: {**t, "image": t["y"][..., :4].clone()}}, "image has shape"),
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
    with pytest.raises(ValueError, match=sentence) as error:
        loaded(name)
    assert str(error.value).startswith(name)
    assert len(str(error.value)) < 1000


def test_a_trajectory_of_another_length(folder):
    name = saved(recorded(tiny.model("unet"), "unet"))
    changed(folder, name, tensors=lambda t: {**t, "latents": t["latents"][1:].clone()})
    with pytest.raises(ValueError, match="latents has shape"):
        loaded(name)


@pytest.mark.parametrize("content", [b"", b"half a file", b"\xff" * 64])
def test_files_that_cannot_be_read(content, folder):
    folder.mkdir(parents=True)
    (folder / "bad.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.safetensors is not a whole safetensors file: .* Get it again"):
        loaded("bad.safetensors")


def test_a_changed_byte_is_noticed_or_changes_nothing(folder):
    """In the header, the description, the checksum and the tensors alike."""
    name = saved(inverted(tiny.model("unet"), "unet", keep_trajectory=True))
    wanted, whole = loaded(name), (folder / name).read_bytes()
    generator = torch.Generator().manual_seed(0)
    header = int.from_bytes(whole[:8], "little") + 8
    places = [*range(0, header, 3), *torch.randint(header, len(whole), (100,), generator=generator).tolist()]
    sentences = []
    for place in places:
        flipped = whole[place] ^ (1 << int(torch.randint(8, (), generator=generator)))
        (folder / name).write_bytes(whole[:place] + bytes([flipped]) + whole[place + 1 :])
        try:
            found = loaded(name)
        except ValueError as error:
            sentences.append(str(error))
            continue
        for one, other in zip(found[KEY].to_file(), wanted[KEY].to_file(), strict=True):
            assert one.keys() == other.keys()
            assert all(
                torch.equal(v, other[k]) if isinstance(v, torch.Tensor) else v == other[k] for k, v in one.items()
            )
    assert all(sentence.startswith(name) for sentence in sentences)
    assert len(sentences) > 0.9 * len(places)


@pytest.mark.parametrize(
    "change",
    [
        {"tensors": lambda t: {**t, "x": t["y"].clone(), "y": t["x"].clone()}},
        {"tensors": lambda t: {**t, "sigmas": t["sigmas"].double()}},
        {
            "tensors": lambda t: {
                **t,
                **{k: t[k].transpose(-1, -2).contiguous() for k in ("shown", "image", "x", "y")},
            }
        },
        {"words": lambda d: {**d, "p": 0.5}},
    ],
)
def test_what_the_checksum_is_of(folder, change):
    """Names, dtypes, shapes and bytes, and the description: a file that is sound in itself, but not what was saved."""
    name = saved(inverted(tiny.model("unet"), "unet"))
    with safe_open(folder / name, "pt") as file:
        before = file.metadata()
    changed(folder, name, **change)
    loaded(name)  # as earlier versions wrote it
    with safe_open(folder / name, "pt") as file:
        inside, after = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    save_file(inside, folder / name, metadata=before | after)
    with pytest.raises(ValueError, match=f"{name} is damaged: its checksum is not the one"):
        loaded(name)


def test_views_of_one_tensor():
    """As latents are that a model takes as they are."""
    whole = torch.arange(12.0).reshape(3, 4)
    files.INVERSIONS.save("views", {"a": whole, "b": whole[1], "c": whole.T}, {})
    found, _ = files.INVERSIONS.load("views.safetensors", ("a", "b", "c"))
    assert torch.equal(found["a"], whole)
    assert torch.equal(found["b"], whole[1])
    assert torch.equal(found["c"], whole.T)
