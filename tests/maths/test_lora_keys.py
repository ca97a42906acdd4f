"""Every layout of an adapter's names is converted to the one that is loaded."""

import pytest

from guidekit.samplers.lora.diffusers_paths import HUNYUAN_VIDEO, WAN, Alias, aliases
from guidekit.samplers.lora.keys import Name, bare, is_of_text, rename, split

PATH = "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q"
FLAT = PATH.replace(".", "_")
# Paths as in ComfyUI's list, with more than one for a module.
UNET = {f"lora_unet_{FLAT}": 1, f"lycoris_{FLAT}": 1, "lora_unet_input_blocks_1_0": 2}
FLUX = {"transformer.single_transformer_blocks.3.attn.to_k": 1, "diffusion_model.single_blocks.3.linear1": 2}

PREFIXES = ["", "unet.", "base_model.model.", "base_model.model.unet.", "unet.base_model.model.", "transformer."]
PREFIXES += ["diffusion_model.", "model.diffusion_model.", "pipe.dit."]
FLAT_PREFIXES = ["lora_unet_", "lora_unet__", "lora_transformer_", "lycoris_", "oft_unet_", "lora_prior_unet_"]
PARTS = {
    "kohya": ("lora_down.weight", "lora_up.weight"),
    "diffusers": ("lora.down.weight", "lora.up.weight"),
    "its first": ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
    "PEFT": ("lora_A.weight", "lora_B.weight"),
    "without an ending": ("lora_A", "lora_B"),
    "the first adapter": ("lora_A.default.weight", "lora_B.default.weight"),
    "an adapter of a pipeline": ("lora_A.default_0.weight", "lora_B.default_0.weight"),
    "any adapter": ("lora_A.my style.weight", "lora_B.my style.weight"),
    "any adapter, without an ending": ("lora_A.my_style", "lora_B.my_style"),
}


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize(
    "path",
    [f"{prefix}{PATH}" for prefix in PREFIXES]
    + [f"{prefix}{FLAT}" for prefix in FLAT_PREFIXES]
    + [f"lora_unet_{FLAT}_", "lora_unet_down_blocks_0_attentions_1.transformer_blocks.0.attn1.to_q"],
)
def test_paths_and_parts(path, parts):
    """Each with each."""
    down, up = (f"{path}.{part}" for part in PARTS[parts])
    found = rename([down, up], UNET)
    (found_down, found_up) = found.names
    assert found_down.removesuffix("lora_down.weight") == found_up.removesuffix("lora_up.weight")
    assert UNET[found_down.removesuffix(".lora_down.weight")] == 1
    assert [*found.names.values()] == [down, up]
    assert not found.unknown
    assert not found.nowhere


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("transformer.single_transformer_blocks.3.attn.to_k.lora_A.weight", "lora_down.weight"),
        ("base_model.model.transformer.single_transformer_blocks.3.attn.to_k.lora_A.weight", "lora_down.weight"),
        ("lora_unet_single_transformer_blocks_3_attn_to_k.lora_down.weight", "lora_down.weight"),
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
    known = {"lora_unet_mid_block_attn1_to_q": 1, "lora_unet_mid_block_attn1_to_out_0": 2}
    q, out = (f"unet.mid_block.attn1.processor.{part}_lora.down.weight" for part in ("to_q", "to_out"))
    assert rename([q, out], known).names == {
        "lora_unet_mid_block_attn1_to_q.lora_down.weight": q,
        "lora_unet_mid_block_attn1_to_out_0.lora_down.weight": out,
    }


@pytest.mark.parametrize(
    ("ending", "part"),
    [
        ("lora_magnitude_vector", "dora_scale"),
        ("lora_magnitude_vector.weight", "dora_scale"),
        ("lora_magnitude_vector.default.weight", "dora_scale"),
        ("lora_magnitude_vector.other", "dora_scale"),
        ("dora_scale", "dora_scale"),
        ("lora_B.bias", "lora_up.bias"),
        ("lora_B.default.bias", "lora_up.bias"),
        ("hada_w1_a.default", "hada_w1_a"),
        ("lokr_t2.other", "lokr_t2"),
    ],
)
def test_parts_of_peft(ending, part):
    name = f"unet.{PATH}.{ending}"
    assert rename([name], UNET).names == {f"lora_unet_{FLAT}.{part}": name}


@pytest.mark.parametrize(
    "part",
    ["hada_w1_a", "hada_w2_b", "hada_t1", "lokr_w1", "lokr_w2_a", "lokr_t2", "oft_blocks", "rescale", "diff", "diff_b"]
    + ["set_weight", "w_norm", "a1.weight", "b2.weight", "alpha", "lora_mid.weight", "reshape_weight"],
)
def test_parts_of_other_kinds(part):
    name = f"unet.{PATH}.{part}"
    assert rename([name], UNET).names == {f"lora_unet_{FLAT}.{part}": name}


@pytest.mark.parametrize(
    "name", ["unet.conv_in.weight", "alpha", "a.lora_A.bias", "a.hada_w1_a.weight", "a.oft_R.weight"]
)
def test_keys_that_are_not_of_an_adapter(name):
    found = rename([name], {"a": 1, "unet.conv_in": 2})
    assert found.unknown == [name]
    assert not found.names


def test_keys_of_modules_that_the_model_does_not_have():
    """By module, whatever the number of its parts."""
    modules = [f"unet.{PATH}x", "text_encoder.text_model.layer", ""]
    found = rename([f"{module}.{part}" for module in modules for part in ("lora_A.weight", "alpha")], UNET)
    assert [*found.nowhere] == modules
    assert not found.names


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("lora_te_text_model_encoder_layers_0_mlp_fc1", True),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1", True),
        ("text_encoder_2.encoder.block.0", True),
        ("base_model.model.text_model.encoder.layers.0", True),
        ("lora_unet_text_embedding_0", False),
        (f"unet.{PATH}", False),
    ],
)
def test_text_encoders(module, text):
    assert is_of_text(module) == text


def test_two_names_of_one_weight():
    """The first is taken, the other is reported."""
    names = [f"unet.{PATH}.lora_A.weight", f"{PATH}.lora.down.weight"]
    found = rename(names, UNET)
    assert found.names == {f"lora_unet_{FLAT}.lora_down.weight": names[0]}
    assert [*found.repeated] == [PATH]


def test_two_adapters_in_one_file():
    names = [f"{PATH}.lora_{factor}.{adapter}.weight" for factor in "AB" for adapter in ("one", "two")]
    found = rename(names, UNET)
    assert [*found.names.values()] == [names[0], names[2]]
    assert [*found.repeated] == [PATH]


def test_an_exact_path_comes_first():
    """A model may have a module under a name that another spelling would lead elsewhere."""
    known = {"unet.a.to_q": 1, "a.to_q": 2, "lora_unet_a_to_q": 3}
    assert [*rename(["unet.a.to_q.lora_A.weight"], known).names] == ["unet.a.to_q.lora_down.weight"]
    assert [*rename(["a.to_q.lora_A.weight"], known).names] == ["a.to_q.lora_down.weight"]


def test_an_ambiguous_path_is_unknown():
    known = {"unet.a.to_q": 1, "transformer.a_to.q": 2, "b.c": 3}
    found = rename(["lora_unet_a_to_q.alpha", "lora_unet_b_c.alpha"], known)
    assert [*found.names] == ["b.c.alpha"]
    assert [*found.nowhere] == ["lora_unet_a_to_q"]


def test_suffixes_are_matched_completely():
    assert split("a.lora_A.default.weight") == Name("a", "lora_down.weight", "default")
    assert split("a_lora.up.weight") == Name("a", "lora_up.weight")
    assert split("a.weight") is None


def test_paths_without_their_prefix():
    assert bare("base_model.model.unet.a.b_0.processor.c") == bare("lora_unet__a_b_0_c_") == "a_b_0_c"
    assert bare("transformer_blocks.0.unet") == "transformer_blocks_0_unet"


@pytest.mark.parametrize(
    ("table", "path", "wanted"),
    [
        (WAN, "blocks.12.self_attn.q", [Alias("blocks.12.attn1.to_q")]),
        (WAN, "vace_blocks.1.cross_attn.o", [Alias("vace_blocks.1.attn2.to_out.0")]),
        (WAN, "blocks.0.cross_attn.v_img", [Alias("blocks.0.attn2.add_v_proj")]),
        (WAN, "blocks.0.ffn.2", [Alias("blocks.0.ffn.net.2")]),
        (WAN, "blocks.0.ffn.22", []),
        (WAN, "head.head", [Alias("proj_out")]),
        (HUNYUAN_VIDEO, "img_in.proj", [Alias("x_embedder.proj")]),
        (
            HUNYUAN_VIDEO,
            "txt_in.individual_token_refiner.blocks.1.self_attn.qkv",
            [Alias(f"context_embedder.token_refiner.refiner_blocks.1.attn.to_{q}", i) for i, q in enumerate("qkv")],
        ),
    ],
)
def test_paths_of_diffusers(table, path, wanted):
    assert aliases(path, table) == wanted
