"""Kinds of adapters against their papers' formulas, and what is said to be applied."""

import json
import logging

import comfy.sd
import pytest
import torch
from safetensors.torch import save_file

from guidekit.samplers.lora.layouts import ACCEPTED
from guidekit.tests.host import tiny
from guidekit.tests.host.adapters import FLUX, UNET, flat, normal, product, weights_of
from guidekit.tests.host.test_preference_lora import folder, load, merged, same_weights  # noqa: F401

LINEAR, CONV = UNET[0], UNET[2]
ROWS, COLUMNS = 32, 16
PATH = f"lycoris_{flat(LINEAR.diffusers)}"
CONV_PATH = f"lycoris_{flat(CONV.diffusers)}"


def save(folder, path, parts, file="x.safetensors", metadata=None):  # noqa: F811
    save_file({f"{path}.{part}": tensor.contiguous() for part, tensor in parts.items()}, folder / file, metadata)


def by_core(model, path, parts):
    tensors = {f"{path}.{part}": tensor for part, tensor in parts.items()}
    return merged(comfy.sd.load_lora_for_models(model, None, tensors, 1.0, 0.0)[0])


def tucker(core, a, b):
    """sum_ij a_i t_ij b_j."""
    return torch.einsum("ij...,ip,jq->pq...", core.double(), a.double(), b.double())


# Products -----------------------------------------------------------------------------------------------------------


def loha():
    a1, b1, a2, b2 = normal(ROWS, 2), normal(2, COLUMNS, seed=1), normal(ROWS, 2, seed=2), normal(2, COLUMNS, seed=3)
    parts = {"hada_w1_a": a1, "hada_w1_b": b1, "hada_w2_a": a2, "hada_w2_b": b2}
    return LINEAR, parts, (a1.double() @ b1.double()) * (a2.double() @ b2.double())


def loha_of_a_convolution():
    halves = [(normal(2, 2, 3, 3, seed=i), normal(2, 64, seed=i + 1), normal(2, 128, seed=i + 2)) for i in (0, 5)]
    parts = {}
    for i, (core, a, b) in zip("12", halves):
        parts |= {f"hada_t{i}": core, f"hada_w{i}_a": a, f"hada_w{i}_b": b}
    return CONV, parts, tucker(*halves[0]) * tucker(*halves[1])


def lokr(one: str, other: str):
    w1, w2 = {}, {}
    if one == "whole":
        w1["lokr_w1"] = normal(4, 2)
    else:
        w1 |= {"lokr_w1_a": normal(4, 2), "lokr_w1_b": normal(2, 2, seed=1)}
    if other == "whole":
        w2["lokr_w2"] = normal(8, 8, seed=2)
    else:
        w2 |= {"lokr_w2_a": normal(8, 2, seed=3), "lokr_w2_b": normal(2, 8, seed=4)}
    left, right = (
        w[f"lokr_w{i}"].double() if f"lokr_w{i}" in w else w[f"lokr_w{i}_a"].double() @ w[f"lokr_w{i}_b"].double()
        for i, w in ((1, w1), (2, w2))
    )
    return LINEAR, w1 | w2, torch.kron(left, right)


def lokr_of_a_convolution():
    w1, core, a, b = normal(4, 8), normal(2, 2, 3, 3, seed=1), normal(2, 16, seed=2), normal(2, 16, seed=3)
    parts = {"lokr_w1": w1, "lokr_t2": core, "lokr_w2_a": a, "lokr_w2_b": b}
    return CONV, parts, torch.kron(w1.double()[:, :, None, None], tucker(core, a, b).contiguous())


PRODUCTS = {
    "LoHa": loha,
    "LoHa of a convolution": loha_of_a_convolution,
    "LoKr": lambda: lokr("whole", "whole"),
    "LoKr, the first in factors": lambda: lokr("factors", "whole"),
    "LoKr, the second in factors": lambda: lokr("whole", "factors"),
    "LoKr, both in factors": lambda: lokr("factors", "factors"),
    "LoKr of a convolution": lokr_of_a_convolution,
}


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("way", ["beside the file", "in its metadata"])
def test_peft_s_alpha(folder, name, way):  # noqa: F811
    """Called alpha for LoHa and LoKr; the product is multiplied by alpha / r, whatever its factors are."""
    target, parts, wanted = PRODUCTS[name]()
    config = json.dumps({"peft_type": name.split()[0].rstrip(",").upper(), "r": 2, "alpha": 8})
    path, file = f"base_model.model.{target.diffusers}", "x.safetensors"
    if way == "beside the file":
        file = "adapter_model.safetensors"
        (folder / "adapter_config.json").write_text(config)
    save(folder, path, parts, file, {"lora_adapter_metadata": config} if way != "beside the file" else None)
    model = tiny.model("unet")
    same_weights(load(model, file=file, strength=0.5)[0], {target.key: 4 * wanted}, 0.5, tolerance=1e-5)


@pytest.mark.parametrize("name", PRODUCTS)
def test_lycoris_s_alpha(folder, name):  # noqa: F811
    """A tensor; of LoKr with whole factors it means nothing."""
    target, parts, wanted = PRODUCTS[name]()
    model, path = tiny.model("unet"), f"lycoris_{flat(target.diffusers)}"
    parts = {**parts, "alpha": torch.tensor(8.0)}
    save(folder, path, parts)
    share = 1 if name == "LoKr" else 4
    loaded, report = load(model, strength=0.5)
    same_weights(loaded, {target.key: share * wanted}, 0.5, tolerance=1e-5)
    assert report.startswith(f"x.safetensors: 1 of its 1 modules are applied: {name.split()[0].rstrip(',')}")


def test_core_leaves_lokr_s_cores_out(folder, caplog):  # noqa: F811
    """Why they are folded: the same file through core's loader changes nothing."""
    _, parts, _ = lokr_of_a_convolution()
    model = tiny.model("unet")
    assert torch.equal(by_core(model, CONV_PATH, parts)[CONV.key], weights_of(model)[CONV.key])
    assert "ERROR lokr" in caplog.text


@pytest.mark.parametrize("family", ["unet", "wan"])
def test_locon_with_a_core(folder, family):  # noqa: F811
    """Convolutions in two and three dimensions; core knows the former only."""
    key = CONV.key if family == "unet" else "diffusion_model.patch_embedding.weight"
    model = tiny.model(family)
    rows, columns, *kernel = weights_of(model)[key].shape
    ones = [1] * len(kernel)
    core, a, b = normal(2, 2, *kernel), normal(2, rows, seed=1), normal(2, columns, seed=2)
    parts = {"lora_mid.weight": core, "lora_up.weight": a.T.reshape(rows, 2, *ones)}
    parts |= {"lora_down.weight": b.reshape(2, columns, *ones)}
    save(folder, key.removesuffix(".weight"), parts)
    loaded, report = load(model, strength=0.5)
    same_weights(loaded, {key: tucker(core, a, b)}, 0.5)
    assert "1 of its 1 modules" in report


@pytest.mark.parametrize("first", [True, False])
def test_glora(folder, first):  # noqa: F811
    """W + W A + B, in either order of the factors."""
    model = tiny.model("unet")
    weight = weights_of(model)[LINEAR.key].double()
    a1, a2, b1, b2 = normal(COLUMNS, 2), normal(2, COLUMNS, seed=1), normal(ROWS, 2, seed=2), normal(2, COLUMNS, seed=3)
    change = weight @ a1.double() @ a2.double() + b1.double() @ b2.double()
    parts = {"a1": a2, "a2": a1, "b1": b2, "b2": b1} if first else {"a1": a1, "a2": a2, "b1": b1, "b2": b2}
    save(folder, PATH, {f"{name}.weight": tensor for name, tensor in parts.items()})
    same_weights(load(model, strength=0.5)[0], {LINEAR.key: change}, 0.5)


# Rotations ----------------------------------------------------------------------------------------------------------


def rotations(blocks, limit=None):
    q = (blocks - blocks.transpose(-1, -2)).double()
    if limit is not None and q.norm() > limit:
        q = q * limit / q.norm()
    eye = torch.eye(blocks.shape[-1], dtype=torch.float64)
    return (eye + q) @ torch.linalg.inv(eye - q)


@pytest.mark.parametrize("target", [LINEAR, CONV], ids=["linear", "convolution"])
@pytest.mark.parametrize("alpha", [None, 0.0, 0.02, 10.0])
@pytest.mark.parametrize("passes", [0, 1])
def test_rescale_and_limit_of_rotations(folder, target, alpha, passes):  # noqa: F811
    """LyCORIS: diag(m) R W, with |Q| limited to alpha times the number of rows; 0 is without a limit. Core leaves m out
    of OFT, and limits it to alpha."""
    model = tiny.model("unet")
    weight = weights_of(model)[target.key].double()
    rows = len(weight)
    blocks = 0.5 * normal(*[1] * passes, rows // 4, 4, 4)
    rescale = 1 + normal(rows, *[1] * (weight.ndim - 1), seed=1)
    parts = {"oft_blocks": blocks, "rescale": rescale} | ({} if alpha is None else {"alpha": torch.tensor(alpha)})
    save(folder, f"lycoris_{flat(target.diffusers)}", parts)
    limit = alpha * rows if alpha else None
    size = (blocks - blocks.transpose(-1, -2)).norm().item()
    assert limit is None or (size > limit) == (alpha < 1)
    turn = torch.block_diag(*rotations(blocks, limit).reshape(-1, 4, 4))
    if passes:  # pairs of rows are exchanged before and after
        order = torch.arange(rows).unflatten(0, (-1, 2, 2)).transpose(1, 2).flatten()
        turned = torch.empty_like(weight)
        turned[order] = torch.einsum("ij,j...->i...", turn, weight[order])
    else:
        turned = torch.einsum("ij,j...->i...", turn.T, weight)
    change = rescale.double() * turned - weight
    for strength in (1.0, 0.5):
        same_weights(load(model, strength=strength)[0], {target.key: change}, strength, tolerance=1e-5)


def test_a_rescale_of_rows_alone(folder):  # noqa: F811
    """Blocks that were never trained turn nothing."""
    model = tiny.model("unet")
    weight = weights_of(model)[LINEAR.key].double()
    rescale = 1 + normal(ROWS, 1)
    save(folder, PATH, {"oft_blocks": torch.zeros(8, 4, 4), "rescale": rescale, "alpha": torch.tensor(0)})
    same_weights(load(model)[0], {LINEAR.key: (rescale.double() - 1) * weight})
    save(folder, PATH, {"oft_blocks": torch.zeros(8, 4, 4), "rescale": torch.ones(ROWS, 1)})
    with pytest.raises(ValueError, match="never trained"):
        load(model)


@pytest.mark.parametrize("parts", [("oft_R.weight",), ("boft_R", "boft_s")])
def test_rotations_of_peft_are_refused(folder, parts):  # noqa: F811
    """They turn inputs, or pass through permutations that the file does not have. No sentence promises them."""
    save(folder, f"base_model.model.{LINEAR.diffusers}", {part: normal(8, 6) for part in parts})
    with pytest.raises(ValueError, match="holds PEFT's OFT or BOFT .* and none of its") as error:
        load(tiny.model("unet"))
    assert ACCEPTED in str(error.value)
    assert "OFT, BOFT or GLoRA with those of kohya, LyCORIS or ComfyUI;" in ACCEPTED


# Biases -------------------------------------------------------------------------------------------------------------


def test_biases_of_a_fused_weight(folder):  # noqa: F811
    """Beside the rows that diffusers' module is of it. Core's loader loses them."""
    model, target = tiny.model("flux"), FLUX[0]
    bias = normal(32)
    save(folder, f"transformer.{target.diffusers}", {"diff_b": bias})
    wanted = torch.zeros(96, dtype=torch.float64)
    wanted[target.rows] = bias.double()
    same_weights(load(model, strength=0.5)[0], {target.key.replace("weight", "bias"): wanted}, 0.5)
    assert not comfy.sd.load_lora_for_models(model, None, {f"transformer.{target.diffusers}.diff_b": bias}, 1.0, 0.0)[
        0
    ].patches


def test_a_bias_of_the_second_factor(folder):  # noqa: F811
    """PEFT's lora_bias: B has one, and alpha / r is the share of both."""
    model, target = tiny.model("flux"), FLUX[2]
    rows, columns = weights_of(model)[target.key].shape
    down, up, bias = normal(3, columns), normal(rows, 3, seed=1), normal(rows, seed=2)
    parts = {"lora_A.weight": down, "lora_B.weight": up, "lora_B.bias": bias}
    metadata = {"lora_adapter_metadata": json.dumps({"transformer.r": 3, "transformer.lora_alpha": 12})}
    save(folder, f"transformer.{target.diffusers}", parts, metadata=metadata)
    changes = {target.key: 4 * product(down, up), target.key.replace("weight", "bias"): 4 * bias.double()}
    same_weights(load(model)[0], changes)


def test_a_bias_that_the_layer_has_not(folder):  # noqa: F811
    model = tiny.model("unet")
    assert LINEAR.key.replace("weight", "bias") not in weights_of(model)
    parts = {"lora_A.weight": normal(3, COLUMNS), "lora_B.weight": normal(ROWS, 3), "lora_B.bias": normal(ROWS)}
    save(folder, f"unet.{LINEAR.diffusers}", parts)
    with pytest.raises(ValueError, match=r"changes a bias of \[32\], where the model has none"):
        load(model)


# What is said -------------------------------------------------------------------------------------------------------


def too_many_passes():
    """BOFT's fifth pass over 32 rows has no pairs any more, so that core gives up."""
    return {f"{PATH}.oft_blocks": normal(5, 8, 4, 4)}


def test_what_changes_no_weight_is_not_applied(folder, caplog):  # noqa: F811
    model = tiny.model("unet")
    path = f"lycoris_{flat(UNET[1].diffusers)}"
    weight = weights_of(model)[UNET[1].key]
    down, up = normal(3, weight.shape[1]), normal(len(weight), 3, seed=1)
    tensors = {f"{path}.lora_down.weight": down, f"{path}.lora_up.weight": up, **too_many_passes()}
    save_file(tensors, folder / "x.safetensors")
    loaded, report = load(model)
    assert "ERROR boft" in caplog.text
    assert report.startswith("x.safetensors: 1 of its 2 modules are applied: LoRA of rank 3")
    assert f"Left out: {PATH} is OFT that leaves the weight as it is." in report
    same_weights(loaded, {UNET[1].key: product(down, up)})


def test_nothing_that_changes_a_weight(folder, caplog):  # noqa: F811
    caplog.set_level(logging.CRITICAL)
    save_file(too_many_passes(), folder / "x.safetensors")
    with pytest.raises(ValueError, match="of its 1 modules none can be used.*leaves the weight as it is"):
        load(tiny.model("unet"))


def test_integers(folder):  # noqa: F811
    """alpha and the shape of a wider layer may be; factors may not."""
    model = tiny.model("unet")
    down, up = normal(3, COLUMNS), normal(ROWS, 3, seed=1)
    save(folder, PATH, {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(6)})
    same_weights(load(model)[0], {LINEAR.key: 2 * product(down, up)})
    save(folder, PATH, {"lora_down.weight": down, "lora_up.weight": (10 * up).long()})
    with pytest.raises(ValueError, match="has lora_up.weight in I64"):
        load(model)


def test_a_wider_layer_by_its_own_names(folder):  # noqa: F811
    """reshape_weight is read off the factors."""
    model, key = tiny.model("flux"), "diffusion_model.img_in.weight"
    weight = weights_of(model)[key]
    down, up = normal(3, 128), normal(32, 3, seed=1)
    parts = {"lora_down.weight": down, "lora_up.weight": up, "reshape_weight": torch.tensor([9, 9])}
    save(folder, key.removesuffix(".weight"), parts)
    found = merged(load(model, strength=0.5)[0])[key].double()
    wanted = torch.cat([weight, torch.zeros(32, 64)], 1).double() + 0.5 * product(down, up)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["LoRA", "LoHa of a convolution", "LoKr", "OFT"])
def test_parts_of_8_bits(folder, name):  # noqa: F811
    """As good as what they are rounded to."""
    if name == "LoRA":
        target, parts = FLUX[2], {"lora_A.weight": normal(3, 32), "lora_B.weight": normal(64, 3, seed=1)}
        parts["lora_B.bias"] = normal(64, seed=2)
    elif name == "OFT":
        target, parts = LINEAR, {"oft_blocks": normal(8, 4, 4), "rescale": 1 + normal(ROWS, 1, seed=1)}
    else:
        target, parts, _ = PRODUCTS[name]()
    model = tiny.model("flux" if target in FLUX else "unet")
    rounded = {part: tensor.to(torch.float8_e4m3fn) for part, tensor in parts.items()}
    config = json.dumps({"r": 3 if name == "LoRA" else 2, "alpha": 6}) if name != "OFT" else "{}"
    found = []
    for file, kept in (("x.safetensors", rounded), ("y.safetensors", {p: t.float() for p, t in rounded.items()})):
        save(folder, f"transformer.{target.diffusers}", kept, file, {"lora_adapter_metadata": config})
        found.append(merged(load(model, file=file)[0]))
    assert found[0].keys() == found[1].keys()
    for key, weight in found[0].items():
        torch.testing.assert_close(weight, found[1][key], rtol=0, atol=1e-6)
