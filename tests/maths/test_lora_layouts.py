"""What is known of adapters without a host: shapes, DoRA, low rank, PEFT's configuration, names of layouts."""

import json

import pytest
import torch

from guidekit.samplers.lora.dora import decomposed
from guidekit.samplers.lora.layouts import layout_of
from guidekit.samplers.lora.low_rank import low_rank
from guidekit.samplers.lora.peft_config import read_config
from guidekit.samplers.lora.shapes import kind_of, problem, rank_of
from guidekit.samplers.lora.tucker import without_cores
from guidekit.samplers.lora.zeros import changes_nothing

WEIGHT = (6, 4, 3, 3)
FIT = {
    "LoRA": {"lora_down.weight": (2, 4, 3, 3), "lora_up.weight": (6, 2, 1, 1), "alpha": ()},
    "LoRA with a core": {
        "lora_down.weight": (2, 4, 1, 1),
        "lora_up.weight": (6, 2, 1, 1),
        "lora_mid.weight": (2, 2, 3, 3),
    },
    "flat LoRA": {"lora_down.weight": (2, 36), "lora_up.weight": (6, 2)},
    "LoHa": {"hada_w1_a": (6, 2), "hada_w1_b": (2, 36), "hada_w2_a": (6, 3), "hada_w2_b": (3, 36)},
    "LoHa with a core": {
        "hada_w1_a": (2, 6),
        "hada_w1_b": (2, 4),
        "hada_t1": (2, 2, 3, 3),
        "hada_w2_a": (2, 6),
        "hada_w2_b": (2, 4),
        "hada_t2": (2, 2, 3, 3),
    },
    "LoKr": {"lokr_w1": (2, 2), "lokr_w2": (3, 2, 3, 3)},
    "LoKr in factors": {"lokr_w1": (2, 2), "lokr_w2_a": (3, 1), "lokr_w2_b": (1, 18)},
    "LoKr with a core": {"lokr_w1": (2, 2), "lokr_w2_a": (2, 3), "lokr_w2_b": (2, 2), "lokr_t2": (2, 2, 3, 3)},
    "OFT": {"oft_blocks": (3, 2, 2)},
    "BOFT": {"oft_blocks": (1, 3, 2, 2)},
    "OFT with a rescale": {"oft_blocks": (3, 2, 2), "rescale": (6, 1, 1, 1)},
    "GLoRA": {"a1.weight": (4, 2), "a2.weight": (2, 4), "b1.weight": (6, 2), "b2.weight": (2, 36)},
    "GLoRA of old": {"a1.weight": (2, 36), "a2.weight": (36, 2), "b1.weight": (2, 36), "b2.weight": (6, 2)},
    "LoRA of a wider layer": {"lora_down.weight": (2, 5, 3, 3), "lora_up.weight": (6, 2, 1, 1), "reshape_weight": (2,)},
    "LoRA with a bias": {"lora_down.weight": (2, 36), "lora_up.weight": (6, 2), "lora_up.bias": (6,)},
    "difference": {"diff": WEIGHT, "diff_b": (6,)},
    "norm": {"w_norm": WEIGHT},
    "DoRA of outputs": {"lora_down.weight": (2, 36), "lora_up.weight": (6, 2), "dora_scale": (6, 1, 1, 1)},
    "DoRA of inputs": {"lora_down.weight": (2, 36), "lora_up.weight": (6, 2), "dora_scale": (1, 4, 1, 1)},
    "DoRA of PEFT": {"lora_down.weight": (2, 36), "lora_up.weight": (6, 2), "dora_scale": (1, 6, 1, 1)},
}


@pytest.mark.parametrize("name", FIT)
def test_what_fits(name):
    assert problem(FIT[name], WEIGHT, (6,)) is None
    assert problem(FIT[name], (5, 7, 3, 3), (5,)) is not None


@pytest.mark.parametrize("name", [name for name in FIT if len(FIT[name]) > 1 and "diff" not in FIT[name]])
def test_a_part_that_is_missing(name):
    """Parts that are required."""
    optional = {"alpha", "lora_mid.weight", "dora_scale", "hada_t1", "hada_t2", "lokr_t2", "lora_up.bias"}
    optional |= {"reshape_weight", "rescale"}
    for part in FIT[name].keys() - optional:
        rest = {p: shape for p, shape in FIT[name].items() if p != part}
        said = problem(rest, WEIGHT)
        assert part in said or "has no" in said or "without" in said


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"lora_down.weight": (3, 36), "lora_up.weight": (6, 2)}, "a rank of 3 and of 2"),
        ({"lora_down.weight": (2, 4), "lora_up.weight": (6, 2), "lora_mid.weight": (3, 2, 3, 3)}, "a rank of"),
        ({"lora_down.weight": (2, 35), "lora_up.weight": (6, 2)}, "6 x 35, where the model has 6 x 36"),
        ({"lora_down.weight": (), "lora_up.weight": (6,)}, "too few dimensions"),
        ({"lora_up.weight": (6, 2), "hada_w1_a": (6, 2)}, "LoHa and LoRA"),
        ({"lora_down.weight": (2, 36), "lora_up.weight": (6, 2), "diff": WEIGHT}, "a whole difference"),
        ({"hada_w1_a": (6, 2), "hada_w1_b": (3, 36), "hada_w2_a": (6, 3), "hada_w2_b": (3, 36)}, "different shapes"),
        ({"hada_w1_a": (6, 2), "hada_w1_b": (2, 36), "hada_w2_a": (4, 3), "hada_w2_b": (3, 36)}, "different shapes"),
        ({"lokr_w1": (2, 2), "lokr_w2_a": (3, 2), "lokr_w2_b": (1, 18)}, "different ranks"),
        ({"oft_blocks": (3, 3, 3)}, "3 blocks of 3 x 3, where the weight has 6 rows"),
        ({"oft_blocks": (3, 2, 3)}, "3 blocks of 2 x 3"),
        ({"oft_blocks": (3, 2, 2), "rescale": (5, 1)}, "a rescale of [5, 1]"),
        ({"a1.weight": (4, 2), "a2.weight": (2, 4), "b1.weight": (6, 3), "b2.weight": (3, 36)}, "different shapes"),
        ({"lora_down.weight": (2, 3, 3, 3), "lora_up.weight": (6, 2), "reshape_weight": (2,)}, "does not fit"),
        ({"lora_down.weight": (2, 40), "lora_up.weight": (6, 2), "reshape_weight": (2,)}, "does not fit"),
        ({"diff": WEIGHT, "diff_b": (7,)}, "changes a bias of [7], where the model has [6]"),
        ({"oft_blocks": (3, 2)}, "too few dimensions"),
        ({"diff": (6, 4)}, "changes a weight of [6, 4]"),
        ({"alpha": (2,), "lora_down.weight": (2, 36), "lora_up.weight": (6, 2)}, "an alpha of 2 numbers"),
        ({"dora_scale": (6, 1, 1, 1)}, "a magnitude without a product"),
        ({"rescale": (6, 1, 1, 1)}, "a rescale without a rotation"),
        ({"alpha": ()}, "nothing but alpha"),
        ({"lora_down.weight": (2, 36), "lora_up.weight": (6, 2), "rescale": (6, 1)}, "a rescale without a rotation"),
        ({"dora_scale": (6, 1, 1, 1), "diff": WEIGHT}, "a magnitude without a product"),
        ({"lora_down.weight": (2, 36), "lora_up.weight": (6, 2), "dora_scale": (5,)}, "a magnitude of [5]"),
        ({"lora_down.weight": (2, 36), "lora_up.weight": (6, 2), "dora_scale": (1, 4, 3, 1)}, "a magnitude of"),
    ],
)
def test_what_does_not_fit(parts, said):
    assert said in problem(parts, WEIGHT, (6,))


@pytest.mark.parametrize("part", ["diff_b", "b_norm"])
def test_a_bias_that_the_model_has_not(part):
    assert "where the model has none" in problem({part: (6,)}, WEIGHT)


def test_rank_and_kind():
    assert rank_of(FIT["LoRA"]) == 2
    assert rank_of(FIT["LoHa"]) == 2
    assert rank_of(FIT["LoKr in factors"]) == 1
    assert rank_of(FIT["LoKr"]) is None
    assert rank_of(FIT["OFT"]) is None
    kinds = {name: kind_of(parts) for name, parts in FIT.items()}
    assert all(kinds[name] == name.split()[0] for name in ("LoRA", "LoHa with a core", "LoKr", "OFT", "GLoRA"))
    assert kinds["difference"] == "differences"


# DoRA ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 3, 3), (5, 5)])
def test_norms_are_the_magnitudes(shape):
    merged = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows, columns = torch.rand(shape[0]).double(), torch.rand(shape[1]).double()
    out = decomposed(merged, rows.reshape(-1, *[1] * (len(shape) - 1)))
    torch.testing.assert_close(out.flatten(1).norm(dim=1), rows)
    torch.testing.assert_close(out / out.norm(), merged / out.norm() * (out / merged))
    inputs = decomposed(merged, columns.reshape(1, -1, *[1] * (len(shape) - 2)))
    torch.testing.assert_close(inputs.transpose(0, 1).flatten(1).norm(dim=1), columns)
    own = merged.flatten(1).norm(dim=1).reshape(-1, *[1] * (len(shape) - 1))
    torch.testing.assert_close(decomposed(merged, own), merged)


def test_rows_of_zeros_stay():
    assert not decomposed(torch.zeros(2, 3), torch.ones(2, 1)).isnan().any()


# Low rank -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7, 12), (12, 7), (6, 4, 3, 3), (5, 5)])
@pytest.mark.parametrize("rank", [1, 3, 40])
def test_is_the_truncated_svd(shape, rank):
    change = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found = low_rank(change, rank)
    u, s, v = torch.linalg.svd(change.flatten(1).double(), full_matrices=False)
    wanted = (u[:, :rank] * s[:rank]) @ v[:rank]
    got = (found.up.double() @ found.down.flatten(1).double()).reshape(shape)
    torch.testing.assert_close(got, wanted.reshape(shape), rtol=0, atol=1e-5)
    assert found.missing == pytest.approx(s[rank:].square().sum().item(), abs=1e-9)
    assert found.size == pytest.approx(change.double().square().sum().item())
    assert found.down.shape[1:] == shape[1:]
    assert found.down.shape[0] == found.up.shape[1] == min(rank, shape[0], change[0].numel())


def test_a_product_of_the_rank_is_kept_whole():
    change = torch.randn(9, 2) @ torch.randn(2, 11)
    found = low_rank(change, 2)
    assert found.missing < 1e-9 * found.size
    torch.testing.assert_close(found.up @ found.down, change, rtol=1e-5, atol=1e-5)


# PEFT ---------------------------------------------------------------------------------------------------------------


def test_alpha_and_its_patterns():
    config = read_config(json.dumps({"r": 8, "lora_alpha": 16, "alpha_pattern": {"attn1.to_q": 4, r"^mid\.to_k$": 2}}))
    wanted = {"down.attn1.to_q": 4, "attn1.to_q": 4, "xattn1.to_q": 16, "mid.to_k": 2, "down.attn1.to_v": 16}
    assert {module: 8 * config.share(module, 8) for module in wanted} == wanted


def test_rank_stabilised():
    """alpha / sqrt(r)."""
    config = read_config(json.dumps({"lora_alpha": 6, "use_rslora": True}))
    assert config.share("x", 16) == pytest.approx(6 / 4)


def test_names_of_diffusers():
    config = read_config(json.dumps({"unet.r": 4, "unet.lora_alpha": 8, "unet.alpha_pattern": {"to_q": 2}}))
    assert config.share("a.to_q", 4) == 2 / 4
    assert config.share("a.to_v", 4) == 8 / 4


def test_loha_and_lokr():
    """alpha without a prefix, and the rank of factors that have none from the configuration."""
    config = read_config(json.dumps({"peft_type": "LOKR", "r": 2, "alpha": 8, "rank_pattern": {"to_q": 4}}))
    assert config.share("a.to_v", None) == 4
    assert config.share("a.to_q", None) == 2
    assert config.share("a.to_q", 16) == 0.5
    with pytest.raises(ValueError, match="alpha 8 and no r"):
        read_config('{"alpha": 8}').share("a", None)


@pytest.mark.parametrize("text", ["{}", '{"r": 4}'])
def test_a_configuration_that_says_nothing(text):
    assert read_config(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "null",
        '{"lora_alpha": "a"}',
        '{"lora_alpha": true}',
        '{"lora_alpha": 1e999}',
        '{"lora_alpha": 1%s}' % ("0" * 400),
        '{"lora_alpha": -1e39}',
        '{"lora_alpha": 4, "alpha_pattern": {"a": 1%s}}' % ("0" * 400),
        '{"lora_alpha": "%s"}' % ("8" * 5000),
        '{"lora_alpha": 4, "alpha_pattern": {"%s": null}}' % ("a" * 5000),
        '{"lora_alpha": 4, "lora_alpha": 8}',
        '{"lora_alpha": 4, "alpha_pattern": [1]}',
        '{"lora_alpha": 4, "alpha_pattern": {"a": null}}',
        '{"lora_alpha": 4, "r": 0}',
        '{"lora_alpha": 4, "r": "8"}',
        '{"lora_alpha": 4, "rank_pattern": {"a": -1}}',
        '{"alpha": "a"}',
        "[" * 100_000,
    ],
)
def test_bad_configurations(text):
    with pytest.raises(ValueError, match="configuration") as error:
        read_config(text)
    assert len(str(error.value)) < 500


# Layouts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lora_unet_down_blocks_0.lora_up.weight", "kohya"),
        ("lora_te_text_model.lora_up.weight", "kohya"),
        ("lora_transformer_layers_0.lora_up.weight", "OneTrainer"),
        ("pipe.dit.blocks.0.self_attn.q.lora_A.default.weight", "DiffSynth"),
        ("double_blocks.0.processor.qkv_lora1.up.weight", "XLabs"),
        ("base_model.model.blocks.0.oft_R.weight", "PEFT's OFT or BOFT"),
        ("base_model.model.blocks.0.boft_s.default", "PEFT's OFT or BOFT"),
        ("lycoris_down_blocks_0.lokr_w1", "LyCORIS"),
        ("diffusion_model.input_blocks.1.lora_up.weight", "ComfyUI's trainer"),
        ("unet.down_blocks.0.to_q.lora.up.weight", "diffusers (unet....lora.up)"),
        ("unet.down_blocks.0.to_q.lora_A.weight", "PEFT in diffusers"),
        ("base_model.model.unet.down_blocks.0.to_q.lora_A.weight", "PEFT (base_model"),
        ("down_blocks.0.attn1.processor.to_q_lora.up.weight", "attention processors"),
        ("text_encoder.text_model.encoder.lora_A.weight", "text encoder's adapter"),
        ("down_blocks.0.to_q.lora_A.weight", "bare paths"),
        ("model.diffusion_model.input_blocks.0.0.weight", "whole checkpoint"),
        ("diffusion_model.input_blocks.0.0.weight", "whole network"),
        ("down_blocks.0.resnets.0.conv1.weight", "layout of diffusers"),
        ("input_blocks.0.0.weight", "layout of its authors"),
        ("decoder.conv_in.weight", "a VAE"),
        ("text_model.encoder.layers.0.weight", "a text encoder"),
        ("emb_params", "an embedding"),
        ("foo.bar", "unknown (foo.bar"),
    ],
)
def test_layouts(name, said):
    assert said in layout_of([name])
    assert said in layout_of([name, name + "2", "x"])


def test_no_names():
    assert layout_of([]) == "an empty file"


# Cores of convolutions ----------------------------------------------------------------------------------------------


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kernel", [(3,), (3, 3), (1, 3, 3)])
def test_cores_in_two_factors(kernel):
    """sum_ij a_i t_ij b_j, for convolutions of any rank."""
    core, a, b = random(2, 3, *kernel), random(2, 6, seed=1), random(3, 4, seed=2)
    whole = torch.einsum("ij...,ip,jq->pq...", core, a, b)
    ones = [1] * len(kernel)
    lora = {
        "lora_mid.weight": core,
        "lora_up.weight": a.T.reshape(6, 2, *ones),
        "lora_down.weight": b.reshape(3, 4, *ones),
    }
    found = without_cores({**lora, "alpha": torch.tensor(2.0)})
    assert found.keys() == {"lora_up.weight", "lora_down.weight", "alpha"}
    assert found["lora_down.weight"].shape == (2, 4, *kernel)
    product = found["lora_up.weight"].flatten(1) @ found["lora_down.weight"].flatten(1)
    torch.testing.assert_close(product, whole.flatten(1))
    for one, other, third in (("hada_w1_a", "hada_w1_b", "hada_t1"), ("lokr_w2_a", "lokr_w2_b", "lokr_t2")):
        found = without_cores({one: a, other: b, third: core})
        assert found.keys() == {one, other}
        torch.testing.assert_close(found[one] @ found[other], whole.flatten(1))


# Nothing ------------------------------------------------------------------------------------------------------------

ZERO, ONE = torch.zeros(2, 2), torch.ones(2, 2)
TURNED = torch.tensor([[[0.0, 1.0], [2.0, 0.0]]])


@pytest.mark.parametrize(
    ("parts", "nothing"),
    [
        ({"lora_down.weight": ONE, "lora_up.weight": ZERO}, True),
        ({"lora_down.weight": ONE, "lora_up.weight": ONE}, False),
        ({"lora_down.weight": ONE, "lora_up.weight": ONE, "alpha": torch.tensor(0.0)}, True),
        ({"lora_down.weight": ONE, "lora_up.weight": ONE, "lora_up.bias": ZERO}, False),
        ({"lora_down.weight": ONE, "lora_up.weight": ZERO, "lora_up.bias": ONE}, False),
        ({"lora_down.weight": ONE, "lora_up.weight": ONE, "reshape_weight": torch.tensor(0)}, False),
        ({"lora_down.weight": ONE, "lora_up.weight": ZERO, "dora_scale": ONE}, False),
        ({"lora_down.weight": ONE, "lora_up.weight": ZERO, "diff_b": ONE}, False),
        ({"hada_w1_a": ONE, "hada_w1_b": ONE, "hada_w2_a": ONE, "hada_w2_b": ZERO}, True),
        ({"lokr_w1": ZERO, "lokr_w2": ONE}, True),
        ({"oft_blocks": TURNED, "alpha": torch.tensor(0.0)}, False),  # without a limit
        ({"oft_blocks": TURNED + TURNED.mT}, True),
        ({"oft_blocks": torch.zeros(1, 2, 2), "rescale": 2 * torch.ones(2, 1)}, False),
        ({"oft_blocks": torch.zeros(1, 2, 2), "rescale": torch.ones(2, 1)}, True),
        ({"a1.weight": ONE, "a2.weight": ZERO, "b1.weight": ZERO, "b2.weight": ONE}, True),
        ({"a1.weight": ONE, "a2.weight": ZERO, "b1.weight": ONE, "b2.weight": ONE}, False),
        ({"diff": ZERO, "diff_b": ZERO}, True),
        ({"set_weight": ZERO}, False),
    ],
)
def test_what_changes_nothing(parts, nothing):
    assert changes_nothing(parts) == nothing
