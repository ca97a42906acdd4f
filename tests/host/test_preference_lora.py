"""The loader of tuned weights: every layout against a merge by hand, and what it says of files that do not fit."""

import json
import math
import os

import comfy.lora
import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths
import pytest
import torch
from comfy.model_base import ModelType
from safetensors.torch import load_file, save_file

import nodes as core
from guidekit.benchmarks._nodes import run_node_all
from guidekit.nodes.host.files import tensors
from guidekit.nodes.preference_lora_loader import PreferenceLoraLoader
from guidekit.samplers.lora.dora import decomposed
from guidekit.samplers.lora.keys import rename
from guidekit.tests.host import probes, tiny
from guidekit.tests.host.adapters import (
    ALPHA,
    FLUX,
    FLUX_LAYOUTS,
    FLUX_WHOLE,
    FLUX_WHOLE_LAYOUTS,
    IGNORED,
    RANK,
    UNET,
    UNET_LAYOUTS,
    factors,
    file_of,
    flat,
    normal,
    product,
    weights_of,
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """models/loras; the whole networks' folder lies in it."""
    whole = tmp_path / "whole"
    whole.mkdir()
    endings = {".safetensors"}
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], endings))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusion_models", ([str(whole)], endings))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return tmp_path


def load(model, file="x.safetensors", **settings):
    return run_node_all(PreferenceLoraLoader, model=model, file=file, **settings)


def merged(model) -> dict[str, torch.Tensor]:
    """All weights that a model has patches for, as the host would load them."""
    originals = weights_of(model)
    return {
        key: comfy.lora.calculate_weight(patches, originals[key].clone(), key) for key, patches in model.patches.items()
    }


def same_weights(model, changes, strength=1.0, tolerance=1e-6):
    found, originals = merged(model), weights_of(model)
    assert found.keys() == changes.keys()
    for key, change in changes.items():
        wanted = originals[key].double() + strength * change
        torch.testing.assert_close(found[key].double(), wanted, rtol=0, atol=tolerance)
        assert change.abs().max() > 0.01


CASES = [
    (family, targets, name, layout)
    for family, targets, layouts in (
        ("unet", UNET, UNET_LAYOUTS),
        ("flux", FLUX, FLUX_LAYOUTS),
        ("flux", FLUX_WHOLE, FLUX_WHOLE_LAYOUTS),
    )
    for name, layout in layouts.items()
]


@pytest.mark.parametrize(("family", "targets", "name", "layout"), CASES, ids=[f"{c[0]}-{c[2]}" for c in CASES])
@pytest.mark.parametrize("alpha", [ALPHA, None])
def test_every_layout_is_the_merge_by_hand(folder, family, targets, name, layout, alpha):
    model = tiny.model(family)
    changes = file_of(folder / "x.safetensors", model, targets, layout, alpha)
    loaded, report = load(model, strength=0.7)
    same_weights(loaded, changes, 0.7)
    assert f"{len(changes)} of its {len(changes)} modules" in report
    assert f"rank {RANK}" in report
    assert (f"alpha {ALPHA:g}" in report) == (alpha is not None)


def test_the_host_samples_with_it(folder):
    """Loaded, sampled, taken out again: as a network whose weights were changed by hand."""
    model = tiny.model("unet")
    changes = file_of(folder / "x.safetensors", model, UNET, UNET_LAYOUTS["PEFT in diffusers"])
    loaded, _ = load(model)
    by_hand = tiny.build(tiny.FAMILIES["unet"].network)
    weights = dict(by_hand.model.named_parameters())
    for key, change in changes.items():
        weights[key].data += change.float()
    plain = tiny.sample(tiny.model("unet"), "unet")
    out = tiny.sample(loaded, "unet")
    assert probes.distance(out, tiny.sample(by_hand, "unet")) < 1e-4
    assert probes.distance(out, plain) > 1e-3
    assert torch.equal(tiny.sample(tiny.model("unet"), "unet"), plain)


def test_core_ignores_what_is_loaded_here(folder, caplog):
    """The layouts of diffusers and PEFT on UNets: core's loader leaves attention as it is, without an error."""
    for name, layout in IGNORED.items():
        model = tiny.model("unet")
        changes = file_of(folder / "x.safetensors", model, UNET[:2], layout)
        caplog.clear()
        by_core, _ = comfy.sd.load_lora_for_models(model, None, load_file(folder / "x.safetensors"), 1.0, 0.0)
        assert not by_core.patches, name
        assert "lora key not loaded" in caplog.text
        loaded, _ = load(model)
        same_weights(loaded, changes)


@pytest.mark.parametrize("name", UNET_LAYOUTS)
def test_renamed_files_load_in_core(folder, name):
    """Through our names and core's own LoraLoaderModelOnly: the same weights."""
    model = tiny.model("unet")
    changes = file_of(folder / "x.safetensors", model, UNET, UNET_LAYOUTS[name])
    tensors = load_file(folder / "x.safetensors")
    found = rename(tensors, comfy.lora.model_lora_keys_unet(model.model, {}))
    save_file({new: tensors[old] for new, old in found.names.items()}, folder / "renamed.safetensors")
    (by_core,) = core.LoraLoaderModelOnly().load_lora_model_only(model, "renamed.safetensors", 0.7)
    same_weights(by_core, changes, 0.7)


# Other kinds --------------------------------------------------------------------------------------------------------


def save(folder, **tensors):
    save_file({name.replace("__", "."): t.contiguous() for name, t in tensors.items()}, folder / "x.safetensors")


LINEAR, CONV = UNET[0], UNET[2]
PLACE = f"lora_unet_{flat(LINEAR.authors)}"


def test_loha(folder):
    model = tiny.model("unet")
    out, width = weights_of(model)[LINEAR.key].shape
    a1, b1, a2, b2 = normal(out, 2), normal(2, width, seed=1), normal(out, 2, seed=2), normal(2, width, seed=3)
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    save(
        folder,
        **{f"{PLACE}__{n}": t for n, t in zip(names, (a1, b1, a2, b2))},
        **{f"{PLACE}__alpha": torch.tensor(4.0)},
    )
    loaded, report = load(model, strength=0.5)
    change = (a1.double() @ b1.double()) * (a2.double() @ b2.double()) * (4 / 2)
    found = merged(loaded)[LINEAR.key].double()
    torch.testing.assert_close(found, weights_of(model)[LINEAR.key].double() + 0.5 * change, rtol=0, atol=1e-6)
    assert "LoHa of rank 2, alpha 4" in report


def test_lokr(folder):
    model = tiny.model("unet")
    out, width = weights_of(model)[LINEAR.key].shape
    one, two = normal(4, 2), normal(out // 4, width // 2, seed=1)
    save(
        folder, **{f"lycoris_{flat(LINEAR.diffusers)}__lokr_w1": one, f"lycoris_{flat(LINEAR.diffusers)}__lokr_w2": two}
    )
    loaded, report = load(model, strength=0.5)
    same_weights(loaded, {LINEAR.key: torch.kron(one.double(), two.double())}, 0.5)
    assert "LoKr" in report


@pytest.mark.parametrize("strength", [0.5, 1.0, -0.5])
@pytest.mark.parametrize("passes", [0, 1])
def test_oft_and_boft(folder, strength, passes):
    """W + s (R W - W), with R of Cayley's transform. Core multiplies the change of OFT by s twice."""
    model = tiny.model("unet")
    weight = weights_of(model)[LINEAR.key].double()
    blocks = normal(*[1] * passes, len(weight) // 4, 4, 4)
    save(folder, **{f"{PLACE}__oft_blocks": blocks})
    q = (blocks - blocks.transpose(-1, -2)).double().reshape(-1, 4, 4)
    eye = torch.eye(4, dtype=torch.float64)
    rotations = (eye + q) @ torch.linalg.inv(eye - q)
    loaded, report = load(model, strength=strength)
    assert "OFT" in report
    found = merged(loaded)[LINEAR.key].double()
    if passes:  # one pass of BOFT: pairs of rows are exchanged before and after
        rows = torch.arange(len(weight)).unflatten(0, (-1, 2, 2)).transpose(1, 2).flatten()
        turned = torch.empty_like(weight)
        turned[rows] = torch.block_diag(*rotations) @ weight[rows]
    else:
        turned = torch.block_diag(*rotations).T @ weight
    change = turned - weight
    torch.testing.assert_close(found, weight + strength * change, rtol=0, atol=1e-5)
    if not passes and strength != 1:
        by_core, _ = comfy.sd.load_lora_for_models(model, None, load_file(folder / "x.safetensors"), strength, 0.0)
        theirs = merged(by_core)[LINEAR.key].double()
        torch.testing.assert_close(theirs, weight + strength**2 * change, rtol=0, atol=1e-5)


@pytest.mark.parametrize("target", [LINEAR, CONV, FLUX[0]], ids=["linear", "convolution", "rows of Flux"])
@pytest.mark.parametrize("how", ["PEFT", "kohya, outputs", "kohya, inputs"])
def test_dora(folder, target, how):
    """m (W + s B A) / |W + s B A|. Core divides by |W| where the magnitudes are for outputs."""
    family = "flux" if target in FLUX else "unet"
    model = tiny.model(family)
    weight = weights_of(model)[target.key][target.rows].double()
    down, up = factors(weight, 0)
    changed = weight + product(down, up) * (ALPHA / RANK)
    inputs = how == "kohya, inputs"
    size = weight.shape[1] if inputs else len(weight)
    magnitude = 0.5 + torch.rand(size, generator=torch.Generator().manual_seed(5))
    shape = (1, -1, *[1] * (weight.ndim - 2)) if inputs else (-1, *[1] * (weight.ndim - 1))
    if how == "PEFT":
        path = f"transformer.{target.diffusers}" if family == "flux" else f"base_model.model.unet.{target.diffusers}"
        stored = magnitude.reshape(1, -1, 1, 1) if weight.ndim == 4 else magnitude  # as PEFT has it
        names = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"
    else:
        path = f"lycoris_{flat(target.diffusers)}"
        stored, names = magnitude.reshape(shape), (".lora_down.weight", ".lora_up.weight", ".dora_scale")
    tensors = {path + n: t.float().contiguous() for n, t in zip(names, (down, up, stored))}
    tensors[path + ".alpha"] = torch.tensor(ALPHA)
    save_file(tensors, folder / "x.safetensors")
    wanted = decomposed(changed, magnitude.double().reshape(shape))
    for strength in (1.0, 0.4):
        loaded, report = load(model, strength=strength)
        found = merged(loaded)[target.key][target.rows].double()
        torch.testing.assert_close(found, weight + strength * (wanted - weight), rtol=0, atol=2e-6)
    assert "DoRA of rank 3" in report
    rest = torch.ones(len(weights_of(model)[target.key]), dtype=torch.bool)
    rest[target.rows] = False
    assert torch.equal(merged(loaded)[target.key][rest], weights_of(model)[target.key][rest])
    if how == "kohya, outputs":
        by_core, _ = comfy.sd.load_lora_for_models(model, None, tensors, 1.0, 0.0)
        theirs = merged(by_core)[target.key][target.rows].double()
        norms = weight.flatten(1).norm(dim=1).reshape(shape)
        torch.testing.assert_close(theirs, changed * (magnitude.double().reshape(shape) / norms), rtol=0, atol=1e-5)
        assert (theirs - wanted).norm() / (wanted - weight).norm() > 0.02


def test_differences_of_weights_and_biases(folder):
    model = tiny.model("unet")
    weights = weights_of(model)
    path = "diffusion_model.out.2"
    diff, bias = normal(*weights[f"{path}.weight"].shape), normal(*weights[f"{path}.bias"].shape, seed=1)
    save_file({f"{path}.diff": diff, f"{path}.diff_b": bias}, folder / "x.safetensors")
    loaded, report = load(model, strength=0.5)
    same_weights(loaded, {f"{path}.weight": diff.double(), f"{path}.bias": bias.double()}, 0.5)
    assert "differences" in report


# Where alpha comes from ---------------------------------------------------------------------------------------------


def test_alpha_from_the_metadata_of_diffusers(folder):
    model = tiny.model("unet")
    config = {"unet.r": RANK, "unet.lora_alpha": 9, "unet.alpha_pattern": {"attn2.to_k": 12}}
    metadata = {"lora_adapter_metadata": json.dumps(config)}
    path = folder / "x.safetensors"
    changes = file_of(path, model, UNET, UNET_LAYOUTS["PEFT in diffusers"], None, metadata)
    shares = {key: (12 if "attn2.to_k" in key else 9) / RANK for key in changes}
    loaded, report = load(model)
    same_weights(loaded, {key: shares[key] * change for key, change in changes.items()})
    assert "alpha 9 to 12" in report


def test_alpha_from_the_file_beside(folder):
    """PEFT's own: adapter_config.json, for adapter_model.safetensors and for no other file."""
    model = tiny.model("unet")
    (folder / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": 12, "use_rslora": True}))
    for name, share in (("adapter_model.safetensors", 12 / RANK**0.5), ("x.safetensors", 1.0)):
        changes = file_of(folder / name, model, UNET, UNET_LAYOUTS["PEFT"], None)
        loaded, _ = load(model, file=name)
        same_weights(loaded, {key: share * change for key, change in changes.items()})


def test_the_file_s_own_alpha_comes_first(folder):
    model = tiny.model("unet")
    metadata = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 90})}
    changes = file_of(folder / "x.safetensors", model, UNET, UNET_LAYOUTS["diffusers"], ALPHA, metadata)
    same_weights(load(model)[0], changes)


# Whole networks -----------------------------------------------------------------------------------------------------


def other_unet(model):
    """Another network of the shape, with the names of diffusers."""
    generator = torch.Generator().manual_seed(8)
    names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    weights = weights_of(model)
    return {
        name: (w := weights[f"diffusion_model.{key}"]) + 0.02 * torch.randn(w.shape, generator=generator)
        for name, key in names.items()
        if f"diffusion_model.{key}" in weights
    }


def key_of(model, name):
    return "diffusion_model." + comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)[name]


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("layout", ["diffusers", "authors", "authors with a prefix"])
def test_a_whole_network_at_any_strength(folder, strength, layout):
    """0 is the model, 1 is the file, 0.5 between."""
    model = tiny.model("unet")
    target = other_unet(model)
    keys = {name: key_of(model, name) for name in target}
    file = target
    if layout != "diffusers":
        prefix = "model.diffusion_model." if "prefix" in layout else ""
        file = {prefix + keys[name].removeprefix("diffusion_model."): t for name, t in target.items()}
    save_file(file, folder / "whole" / "kto.safetensors")
    loaded, report = load(model, file="diffusion_models/kto.safetensors", strength=strength)
    assert len(target) == len(dict(model.model.diffusion_model.named_parameters()))
    originals, found = weights_of(model), merged(loaded)
    assert (len(found) == 0) == (strength == 0)
    for name, wanted in target.items():
        base = originals[keys[name]]
        torch.testing.assert_close(found.get(keys[name], base), torch.lerp(base, wanted, strength), rtol=0, atol=1e-6)
    assert strength == 0 or f"{len(target)} of its {len(target)} weights differ" in report


def test_a_whole_network_on_a_patched_and_loaded_model(folder):
    """The difference is to the weights as they were loaded, whatever else is on the model just now."""
    model = tiny.model("unet")
    target = other_unet(model)
    save_file(target, folder / "x.safetensors")
    patched = model.clone()
    key = key_of(model, "conv_in.weight")
    patched.add_patches({key: ("diff", (torch.ones_like(weights_of(model)[key]),))}, 1.0)
    comfy.model_management.load_models_gpu([patched])
    loaded, _ = load(patched)
    comfy.model_management.unload_all_models()
    wanted = target["conv_in.weight"] + 1
    torch.testing.assert_close(merged(loaded)[key], wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 4, 4096])
def test_a_whole_network_in_low_rank(folder, rank):
    model = tiny.model("unet")
    target = other_unet(model)
    save_file(target, folder / "x.safetensors")
    loaded, report = load(model, rank=rank)
    originals, found = weights_of(model), merged(loaded)
    missed = total = 0.0
    for name, wanted in target.items():
        key = key_of(model, name)
        change = (wanted - originals[key]).double()
        got = (found[key] - originals[key]).double()
        if rank * sum(change.flatten(1).shape if change.ndim > 1 else (change.numel(), 1)) < change.numel():
            s = torch.linalg.svdvals(change.flatten(1))
            assert (got - change).norm() ** 2 == pytest.approx(s[rank:].square().sum().item(), abs=1e-6)
        else:
            torch.testing.assert_close(got, change, rtol=0, atol=1e-6)
        missed += (got - change).square().sum().item()
        total += change.square().sum().item()
    for key, [patch] in loaded.patches.items():
        kept = patch[1][1] if isinstance(patch[1], tuple) else patch[1].weights[:2]
        assert sum(t.numel() for t in kept) <= originals[key].numel()
    said = float(report.split("relative error of ")[1].split(".\n")[0])
    assert said == pytest.approx((missed / total) ** 0.5, abs=2e-3 if rank == 4096 else 1e-3)


def test_a_whole_network_in_float8(folder):
    """Its difference is kept in float16, whose rounding is far below that of the file."""
    model = tiny.model("unet")
    target = {name: value.to(torch.float8_e4m3fn) for name, value in other_unet(model).items()}
    save_file(target, folder / "x.safetensors")
    found = merged(load(model)[0])
    for name, value in target.items():
        torch.testing.assert_close(found[key_of(model, name)], value.float(), rtol=0, atol=1e-3)


def test_weights_that_did_not_change_cost_nothing(folder):
    model = tiny.model("unet")
    target = other_unet(model)
    same = {name: weights_of(model)[key_of(model, name)].clone() for name in target}
    save_file({**same, "conv_in.weight": target["conv_in.weight"]}, folder / "x.safetensors")
    loaded, report = load(model)
    assert [*loaded.patches] == [key_of(model, "conv_in.weight")]
    assert f"1 of its {len(target)} weights differ" in report
    save_file(same, folder / "y.safetensors")
    with pytest.raises(ValueError, match="has the weights of the model itself"):
        load(model, file="y.safetensors")


# Files that do not fit ----------------------------------------------------------------------------------------------


def test_another_architecture(folder):
    """SD2's text is 1024 wide: both sides are named."""
    model = tiny.model("unet")
    names = UNET_LAYOUTS["kohya"](LINEAR)
    out = len(weights_of(model)[LINEAR.key])
    metadata = {"ss_base_model_version": "sd_v2"}
    save_file({names[0]: normal(4, 1024), names[1]: normal(out, 4)}, folder / "x.safetensors", metadata=metadata)
    with pytest.raises(ValueError, match=r"does not fit BaseModel; it is for SD2 or sd_v2.*1024, where the model has"):
        load(model)


@pytest.mark.parametrize("whole", [False, True])
def test_weights_of_what_does_not_fit_are_not_read(folder, whole, monkeypatch):
    """Two gigabytes, all but the header a hole in the file."""
    shapes = {name: [9999] for name in other_unet(tiny.model("unet"))}
    if not whole:
        down, up = UNET_LAYOUTS["kohya"](LINEAR)
        shapes = {down: [4, 2**26], up: [32, 4]}
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with (folder / "x.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    monkeypatch.setattr(tensors, "safe_open", None)
    with pytest.raises(ValueError, match="does not fit BaseModel|another network than BaseModel"):
        load(tiny.model("unet"))


def test_a_layout_that_is_no_adapter(folder):
    model = tiny.model("unet")
    save_file({"decoder.conv_in.weight": normal(2, 2)}, folder / "x.safetensors")
    with pytest.raises(ValueError, match="holds a VAE, and none of its 1 names belongs to BaseModel.*Accepted: LoRA"):
        load(model)


def test_a_whole_network_of_another_shape(folder):
    model = tiny.model("unet")
    target = other_unet(model)
    target["conv_in.weight"] = normal(32, 9, 3, 3)
    save_file(target, folder / "x.safetensors")
    with pytest.raises(ValueError, match="another network than BaseModel.* 0 are not in it and 1 have another shape"):
        load(model)
    del target["conv_in.weight"]
    save_file(target, folder / "x.safetensors")
    with pytest.raises(ValueError, match="1 are not in it and 0 have another shape"):
        load(model)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("whole", [False, True])
def test_numbers_that_are_not_finite(folder, value, whole):
    model = tiny.model("unet")
    if whole:
        tensors = other_unet(model)
        name = "conv_in.weight"
    else:
        file_of(folder / "x.safetensors", model, UNET, UNET_LAYOUTS["PEFT"])
        tensors = load_file(folder / "x.safetensors")
        name = next(iter(tensors))
    tensors[name].view(-1)[3 if tensors[name].numel() > 3 else 0] = value
    save_file(tensors, folder / "x.safetensors")
    with pytest.raises(ValueError, match="holds NaN or infinity in"):
        load(model)


def test_nothing_but_zeros(folder):
    model = tiny.model("unet")
    path = folder / "x.safetensors"
    file_of(path, model, UNET, UNET_LAYOUTS["PEFT"])
    tensors = {k: torch.zeros_like(t) if "lora_B" in k else t for k, t in load_file(path).items()}
    save_file(tensors, path)
    with pytest.raises(ValueError, match="all of its products are 0"):
        load(model)
    first = next(k for k in tensors if "lora_B" in k)
    save_file({**tensors, first: tensors[first] + 1}, path)
    assert f"{len(UNET) - 1} modules are 0" in load(model)[1]


def test_the_other_prediction(folder):
    """A warning in the report: some are used so on purpose."""
    for model_type, says, warned in (
        (ModelType.EPS, {"modelspec.prediction_type": "v"}, True),
        (ModelType.EPS, {"ss_v_parameterization": "True"}, True),
        (ModelType.EPS, {"ss_v_parameterization": "False"}, False),
        (ModelType.V_PREDICTION, {"modelspec.prediction_type": "epsilon"}, True),
        (ModelType.V_PREDICTION, {"modelspec.prediction_type": "v"}, False),
        (ModelType.EPS, {}, False),
    ):
        model = tiny.model("unet", model_type)
        file_of(folder / "x.safetensors", model, UNET, UNET_LAYOUTS["PEFT"], metadata=says or None)
        assert ("Warning: it was trained to predict" in load(model)[1]) == warned


def test_a_part_of_the_file(folder):
    """What fits is applied, and the report says what was not."""
    model = tiny.model("unet")
    path = folder / "x.safetensors"
    changes = file_of(path, model, UNET, UNET_LAYOUTS["PEFT in diffusers"])
    tensors = load_file(path)
    tensors["unet.nowhere.to_q.lora_A.weight"] = normal(3, 4)
    tensors["text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight"] = normal(3, 4)
    name = UNET_LAYOUTS["PEFT in diffusers"](LINEAR)[1]
    tensors[name] = normal(5, 3)
    save_file(tensors, path)
    loaded, report = load(model)
    same_weights(loaded, {key: change for key, change in changes.items() if key != LINEAR.key})
    assert report.startswith("x.safetensors: 3 of its 6 modules are applied")
    assert "is for a weight of 5 x 16, where the model has 32 x 16" in report
    assert "1 module is for the text encoder" in report
    assert "1 module is not in BaseModel: unet.nowhere.to_q." in report


def test_modules_that_the_host_knows_and_the_model_has_not(folder):
    """The host's list of names is for the largest of a family."""
    model = tiny.model("unet")
    path = folder / "x.safetensors"
    changes = file_of(path, model, UNET, UNET_LAYOUTS["kohya of diffusers"])
    name = "lora_unet_down_blocks_0_resnets_0_conv_shortcut"
    assert comfy.lora.model_lora_keys_unet(model.model, {})[name] not in model.model.state_dict()
    more = {f"{name}.lora_down.weight": normal(3, 32, 1, 1), f"{name}.lora_up.weight": normal(32, 3, 1, 1)}
    save_file(load_file(path) | more, path)
    loaded, report = load(model)
    same_weights(loaded, changes)
    assert "4 of its 5 modules are applied" in report
    assert f"1 module is not in BaseModel: {name}." in report


def test_two_spellings_of_one_weight(folder):
    model = tiny.model("unet")
    path = folder / "x.safetensors"
    changes = file_of(path, model, [LINEAR], UNET_LAYOUTS["kohya"])
    first = load_file(path)
    file_of(path, model, [LINEAR], UNET_LAYOUTS["kohya of diffusers"])
    save_file(first | load_file(path), path)
    loaded, report = load(model)
    same_weights(loaded, changes)
    assert "is for a weight that another module of the file changes already" in report


def test_what_the_file_says_of_itself(folder):
    model = tiny.model("unet")
    metadata = {
        "modelspec.title": "Nice",
        "modelspec.license": "CC0",
        "modelspec.architecture": "stable-diffusion-v1/lora",
    }
    file_of(folder / "x.safetensors", model, UNET, UNET_LAYOUTS["PEFT"], metadata=metadata)
    report = load(model, strength=3.0)[1]
    assert "Title: Nice.\nMade for: stable-diffusion-v1/lora.\nLicence: CC0." in report
    assert "A strength of 3 is far from what was trained" in report
    file_of(folder / "x.safetensors", model, UNET, UNET_LAYOUTS["PEFT"], alpha=100.0)
    report = load(model)[1]
    assert "Licence: the file declares none" in report
    assert "An alpha of 100 at rank 3 is unusually strong" in report


BAD = {
    "cut": b"\x00\x01",
    "pickle": b"\x80\x02abcdefghijk",
    "huge header": (2**60).to_bytes(8, "little") + b"{}",
    "overlapping": None,
    "strings": None,
    "bad config": None,
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files(folder, kind):
    """Each a sentence; the reader itself is tested beside its code."""
    model, path = tiny.model("unet"), folder / "x.safetensors"
    if kind == "overlapping":
        entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
        text = json.dumps({"a": entry, "b": entry}).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 4)
    elif kind == "strings":
        names = UNET_LAYOUTS["kohya"](LINEAR)
        save_file({names[0]: normal(4, 16).bool(), names[1]: normal(32, 4).bool()}, path)
    elif kind == "bad config":
        file_of(path, model, UNET, UNET_LAYOUTS["PEFT"], None, {"lora_adapter_metadata": "{"})
    else:
        path.write_bytes(BAD[kind])
    with pytest.raises(ValueError, match=r"x\.safetensors (has|is|does|cannot) .*\."):
        load(model)


def test_strength_0_is_no_node(folder):
    model = tiny.model("unet")
    file_of(folder / "x.safetensors", model, UNET, UNET_LAYOUTS["PEFT"])
    loaded, report = load(model, strength=0.0, apply_to="negative only")
    assert loaded.patches == model.patches
    assert loaded.model_options == model.model_options
    assert "nothing is applied" in report


@pytest.mark.parametrize("name", ["../x.safetensors", "nothing.safetensors", "diffusion_models/../x.safetensors"])
def test_files_that_are_not_offered(folder, name):
    file_of(folder / "x.safetensors", tiny.model("unet"), UNET, UNET_LAYOUTS["PEFT"])
    with pytest.raises(ValueError, match="There is no file"):
        load(tiny.model("unet"), file=name)


def test_a_file_that_was_written_anew_is_read_anew(folder):
    path = folder / "x.safetensors"
    file_of(path, tiny.model("unet"), UNET, UNET_LAYOUTS["PEFT"])
    before = PreferenceLoraLoader.fingerprint_inputs(file="x.safetensors")
    os.utime(path, (1, 1))
    assert PreferenceLoraLoader.fingerprint_inputs(file="x.safetensors") != before
    assert PreferenceLoraLoader.fingerprint_inputs(file="gone.safetensors") is None
