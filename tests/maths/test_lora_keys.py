"""Every layout of an adapter's names comes to the one that is loaded."""

import pytest

from guidekit.samplers.alignment.lora_keys import rename, spellings, split

PATH = "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q"
FLAT = PATH.replace(".", "_")
UNET = {f"lora_unet_{FLAT}", f"lycoris_{FLAT}", "lora_unet_input_blocks_1_0", "diffusion_model.input_blocks.1.0"}
FLUX = {"transformer.single_transformer_blocks.3.attn.to_k", "diffusion_model.single_blocks.3.linear1"}

LAYOUTS = {
    "kohya": (f"lora_unet_{FLAT}.lora_down.weight", f"lora_unet_{FLAT}.lora_up.weight"),
    "diffusers": (f"unet.{PATH}.lora.down.weight", f"unet.{PATH}.lora.up.weight"),
    "PEFT in diffusers": (f"unet.{PATH}.lora_A.weight", f"unet.{PATH}.lora_B.weight"),
    "PEFT": (f"base_model.model.{PATH}.lora_A.weight", f"base_model.model.{PATH}.lora_B.weight"),
    "PEFT of a pipeline": (
        f"base_model.model.unet.{PATH}.lora_A.weight",
        f"base_model.model.unet.{PATH}.lora_B.weight",
    ),
    "PEFT with its adapter's name": (f"unet.{PATH}.lora_A.default.weight", f"unet.{PATH}.lora_B.default.weight"),
    "bare": (f"{PATH}.lora_linear_layer.down.weight", f"{PATH}.lora_linear_layer.up.weight"),
    "without an ending": (f"{PATH}.lora_A", f"{PATH}.lora_B"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_a_unet(layout):
    down, up = LAYOUTS[layout]
    found = rename([down, up], UNET)
    assert found.names == {f"lora_unet_{FLAT}.lora_down.weight": down, f"lora_unet_{FLAT}.lora_up.weight": up}
    assert found.modules == {f"lora_unet_{FLAT}"}
    assert not found.unknown


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("transformer.single_transformer_blocks.3.attn.to_k.lora_A.weight", "lora_down.weight"),
        ("base_model.model.transformer.single_transformer_blocks.3.attn.to_k.lora_A.weight", "lora_down.weight"),
        ("single_transformer_blocks.3.attn.to_k.alpha", "alpha"),
    ],
)
def test_transformers(name, wanted):
    assert rename([name], FLUX).names == {f"transformer.single_transformer_blocks.3.attn.to_k.{wanted}": name}


def test_names_of_the_host_s_own_trainer():
    name = "diffusion_model.single_blocks.3.linear1.lora_up.weight"
    assert rename([name], FLUX).names == {name: name}


def test_processors():
    """Old files of diffusers: to_out has no index there."""
    known = {"lora_unet_mid_block_attn1_to_q", "lora_unet_mid_block_attn1_to_out_0"}
    q, out = (f"unet.mid_block.attn1.processor.{part}_lora.down.weight" for part in ("to_q", "to_out"))
    assert rename([q, out], known).names == {
        "lora_unet_mid_block_attn1_to_q.lora_down.weight": q,
        "lora_unet_mid_block_attn1_to_out_0.lora_down.weight": out,
    }


@pytest.mark.parametrize(
    "ending",
    ["lora_magnitude_vector", "lora_magnitude_vector.weight", "lora_magnitude_vector.default.weight", "dora_scale"],
)
def test_magnitudes_of_dora(ending):
    name = f"unet.{PATH}.{ending}"
    assert rename([name], UNET).names == {f"lora_unet_{FLAT}.dora_scale": name}


@pytest.mark.parametrize(
    "part",
    ["hada_w1_a", "hada_w2_b", "hada_t1", "lokr_w1", "lokr_w2_a", "lokr_t2", "oft_blocks", "rescale", "diff", "diff_b"]
    + ["set_weight", "w_norm", "a1.weight", "b2.weight", "alpha", "lora_mid.weight"],
)
def test_parts_of_other_kinds(part):
    name = f"unet.{PATH}.{part}"
    assert rename([name], UNET).names == {f"lora_unet_{FLAT}.{part}": name}


def test_what_belongs_to_nothing():
    names = [
        f"unet.{PATH}x.lora_A.weight",
        "unet.conv_in.weight",
        "alpha",
        ".alpha",
        "text_encoder.layer.lora_A.weight",
    ]
    found = rename(names, UNET)
    assert found.unknown == names
    assert not found.names


def test_two_names_of_one_weight():
    """The first is taken, the other is said."""
    names = [f"unet.{PATH}.lora_A.weight", f"{PATH}.lora.down.weight"]
    found = rename(names, UNET)
    assert found.names == {f"lora_unet_{FLAT}.lora_down.weight": names[0]}
    assert found.unknown == [names[1]]


def test_a_path_as_it_is_comes_first():
    """A model may have a module under a name that another spelling would lead elsewhere."""
    known = {"unet.a.to_q", "a.to_q", "lora_unet_a_to_q"}
    assert [*rename(["unet.a.to_q.lora_A.weight"], known).names] == ["unet.a.to_q.lora_down.weight"]
    assert [*rename(["a.to_q.lora_A.weight"], known).names] == ["a.to_q.lora_down.weight"]


def test_endings_are_read_whole():
    assert split("a.lora_A.default.weight") == ("a", "lora_down.weight")
    assert split("a_lora.up.weight") == ("a", "lora_up.weight")
    assert split("a.weight") is None
    assert len({*spellings("base_model.model.unet.a.b")}) == len([*spellings("base_model.model.unet.a.b")])
