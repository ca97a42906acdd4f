"""Names of adapters as programs and people have them, on every family: the weights of a merge by hand. Each layout was
reported as not loaded, or loaded in part, by ComfyUI or by a trainer's users."""

import comfy.lora
import comfy.sd
import pytest
import torch
from safetensors.torch import load_file, save_file

from guidekit.tests.host import tiny
from guidekit.tests.host.adapters import KOHYA, PEFT, Target, file_of, flat, normal, product, weights_of
from guidekit.tests.host.test_preference_lora import folder, load, merged, same_weights  # noqa: F401


def whole(key, diffusers, part=(None, None)):
    return Target(f"diffusion_model.{key}.weight", diffusers, part)


TARGETS = {
    # As Z-Image, but with half as many heads of keys and values.
    "lumina2": (
        whole("layers.0.attention.qkv", "layers.0.attention.to_q", (0, 48)),
        whole("layers.1.attention.qkv", "layers.1.attention.to_k", (48, 72)),
        whole("noise_refiner.0.attention.qkv", "noise_refiner.0.attention.to_v", (72, 96)),
        whole("layers.0.attention.out", "layers.0.attention.to_out.0"),
        whole("layers.0.feed_forward.w1", "layers.0.feed_forward.w1"),
    ),
    "wan": (
        whole("blocks.0.self_attn.q", "blocks.0.attn1.to_q"),
        whole("blocks.0.cross_attn.v", "blocks.0.attn2.to_v"),
        whole("blocks.1.self_attn.o", "blocks.1.attn1.to_out.0"),
        whole("blocks.0.ffn.0", "blocks.0.ffn.net.0.proj"),
        whole("blocks.0.ffn.2", "blocks.0.ffn.net.2"),
        whole("time_projection.1", "condition_embedder.time_proj"),
        whole("head.head", "proj_out"),
    ),
    "hunyuan_video": (
        whole("double_blocks.0.img_attn.qkv", "transformer_blocks.0.attn.to_k", (32, 64)),
        whole("double_blocks.1.txt_attn.qkv", "transformer_blocks.1.attn.add_v_proj", (64, 96)),
        whole("double_blocks.0.img_mod.lin", "transformer_blocks.0.norm1.linear"),
        whole("single_blocks.1.linear1", "single_transformer_blocks.1.proj_mlp", (96, 160)),
        whole("single_blocks.0.linear2", "single_transformer_blocks.0.proj_out"),
        whole("img_in.proj", "x_embedder.proj"),
        whole(
            "txt_in.individual_token_refiner.blocks.1.self_attn.qkv",
            "context_embedder.token_refiner.refiner_blocks.1.attn.to_v",
            (64, 96),
        ),
    ),
    "qwen_image": tuple(
        whole(path, path)
        for path in (
            "transformer_blocks.0.attn.to_q",
            "transformer_blocks.1.attn.add_k_proj",
            "transformer_blocks.0.img_mlp.net.0.proj",
            "transformer_blocks.0.img_mod.1",
        )
    ),
    "sd3": (
        whole("joint_blocks.0.x_block.attn.qkv", "transformer_blocks.0.attn.to_k", (128, 256)),
        whole("joint_blocks.0.x_block.attn.proj", "transformer_blocks.0.attn.to_out.0"),
    ),
    "chroma": (
        whole("double_blocks.0.img_attn.qkv", "transformer_blocks.0.attn.to_q", (0, 32)),
        whole("single_blocks.0.linear1", "single_transformer_blocks.0.proj_mlp", (96, 160)),
    ),
    "flux": (
        whole("double_blocks.0.txt_attn.qkv", "transformer_blocks.0.attn.add_q_proj", (0, 32)),
        whole("single_blocks.1.linear1", "single_transformer_blocks.1.proj_mlp", (96, 160)),
        whole("single_blocks.1.modulation.lin", "single_transformer_blocks.1.norm.linear"),
    ),
    "unet": (
        whole(
            "input_blocks.1.1.transformer_blocks.0.attn2.to_k",
            "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
        ),
        whole("output_blocks.0.0.in_layers.2", "up_blocks.0.resnets.0.conv1"),
    ),
}


def half_flat(path: str) -> str:
    """Underscores in its first words only."""
    head, _, tail = path.partition(".")
    middle, _, tail = tail.partition(".")
    return f"{head}_{middle}.{tail}" if tail else f"{head}_{middle}"


def named(adapter: str) -> tuple[str, str]:
    return f".lora_A.{adapter}.weight", f".lora_B.{adapter}.weight"


# How they spell a module's path, and the two parts.
LAYOUTS = {
    "musubi, kohya (lora_unet_)": (lambda path: f"lora_unet_{flat(path)}", KOHYA),
    "Wan-Fun (lora_unet__)": (lambda path: f"lora_unet__{flat(path)}", KOHYA),
    "a trailing underscore": (lambda path: f"lora_unet_{flat(path)}_", KOHYA),
    "dots and underscores": (lambda path: f"lora_unet_{half_flat(path)}", KOHYA),
    "OneTrainer (lora_transformer_)": (lambda path: f"lora_transformer_{flat(path)}", KOHYA),
    "LyCORIS (lycoris_)": (lambda path: f"lycoris_{flat(path)}", KOHYA),
    "diffusers (transformer.)": (lambda path: f"transformer.{path}", PEFT),
    "ai-toolkit (diffusion_model.)": (lambda path: f"diffusion_model.{path}", PEFT),
    "SimpleTuner (transformer.base_model.model.)": (lambda path: f"transformer.base_model.model.{path}", PEFT),
    "DiffSynth (pipe.dit.)": (lambda path: f"pipe.dit.{path}", named("default")),
    "DiffSynth, bare": (lambda path: path, named("default")),
    "a pipeline's adapter (default_0)": (lambda path: f"transformer.{path}", named("default_0")),
    "an adapter named by its user": (lambda path: f"base_model.model.{path}", named("my_style")),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", TARGETS)
def test_every_layout_on_every_family(folder, family, layout):  # noqa: F811
    model, (path, (down, up)) = tiny.model(family), LAYOUTS[layout]

    def names(target):
        return path(target.diffusers) + down, path(target.diffusers) + up

    changes = file_of(folder / "x.safetensors", model, TARGETS[family], names)
    loaded, report = load(model, strength=0.7)
    same_weights(loaded, changes, 0.7)
    assert report.startswith(f"x.safetensors: {len(changes)} of its {len(changes)} modules are applied: LoRA of rank 3")


@pytest.mark.parametrize("family", ["flux", "hunyuan_video"])
def test_a_layer_whose_halves_diffusers_exchanges(folder, family):  # noqa: F811
    """Shift and scale of the last layer."""
    model = tiny.model(family)
    key = "diffusion_model.final_layer.adaLN_modulation.1.weight"
    down, up = normal(3, 32), normal(64, 3, seed=1)
    names = (f"lora_unet_norm_out_linear{end}" for end in KOHYA)
    save_file(dict(zip(names, (down, up))), folder / "x.safetensors")
    change = product(down, up)
    same_weights(load(model)[0], {key: torch.cat([change[32:], change[:32]])})


def test_musubi_s_names_of_hunyuan_video(folder):  # noqa: F811
    """The authors' names, flat: ComfyUI's list has them with dots only."""
    model = tiny.model("hunyuan_video")
    paths = {"img_attn_qkv": "img_attn.qkv", "img_mlp_fc1": "img_mlp.0", "img_mod_linear": "img_mod.lin"}
    targets = [whole(f"double_blocks.0.{own}", f"double_blocks.0.{theirs}") for theirs, own in paths.items()]
    changes = file_of(
        folder / "x.safetensors",
        model,
        targets,
        lambda t: tuple(f"lora_unet_{flat(t.diffusers)}{end}" for end in KOHYA),
    )
    same_weights(load(model)[0], changes)
    by_core, _ = comfy.sd.load_lora_for_models(model, None, load_file(folder / "x.safetensors"), 1.0, 0.0)
    assert len(by_core.patches) < len(changes)


# What ComfyUI converts first ----------------------------------------------------------------------------------------

PROCESSORS = {
    "double_blocks.0.processor.qkv_lora1": "double_blocks.0.img_attn.qkv",
    "double_blocks.0.processor.qkv_lora2": "double_blocks.0.txt_attn.qkv",
    "double_blocks.1.processor.proj_lora1": "double_blocks.1.img_attn.proj",
    "double_blocks.1.processor.proj_lora2": "double_blocks.1.txt_attn.proj",
    "single_blocks.1.processor.proj_lora": "single_blocks.1.linear2",
}


@pytest.mark.parametrize("single", [True, False])
def test_processors_of_flux(folder, single):  # noqa: F811
    """USO's and, without single blocks, XLabs', whose files ComfyUI converts only where a network has 38 of these."""
    model = tiny.model("flux")
    targets = [whole(key, path) for path, key in PROCESSORS.items() if single or "single" not in path]
    if single:
        targets.append(whole("single_blocks.0.linear1", "single_blocks.0.processor.qkv_lora", (0, 96)))
    changes = file_of(
        folder / "x.safetensors",
        model,
        targets,
        lambda t: (f"{t.diffusers}.down.weight", f"{t.diffusers}.up.weight"),
        None,
    )
    loaded, report = load(model, strength=0.7)
    same_weights(loaded, changes, 0.7)
    assert f"{len(targets)} of its {len(targets)} modules" in report


def control_lora(model):
    """In the layout of FLUX.1-Canny-dev-lora: twice as wide an input, biases, and norms that are set."""
    weights = weights_of(model)
    tensors = {"img_in.lora_A.weight": normal(3, 128), "img_in.lora_B.weight": normal(32, 3, seed=1)}
    tensors["img_in.lora_B.bias"] = normal(32, seed=2)
    for seed, norm in enumerate(("single_blocks.0.norm.key_norm", "double_blocks.1.img_attn.norm.query_norm")):
        tensors[f"{norm}.scale"] = 1 + normal(16, seed=seed)
    tensors |= {"double_blocks.0.img_attn.qkv.lora_A.weight": normal(3, 32, seed=4)}
    tensors |= {"double_blocks.0.img_attn.qkv.lora_B.weight": normal(96, 3, seed=5)}
    tensors |= {"double_blocks.0.img_attn.qkv.lora_B.bias": normal(96, seed=6)}
    assert weights["diffusion_model.img_in.weight"].shape == (32, 64)
    return tensors


def test_flux_control_loras(folder):  # noqa: F811
    """As core's loader has them, at strength 1; at another, norms go a part of the way."""
    model = tiny.model("flux")
    tensors = control_lora(model)
    save_file(tensors, folder / "x.safetensors")
    by_core, _ = comfy.sd.load_lora_for_models(model, None, tensors, 1.0, 0.0)
    wanted, (loaded, report) = merged(by_core), load(model)
    found, weights = merged(loaded), weights_of(model)
    assert report.startswith("x.safetensors: 4 of its 4 modules are applied")
    assert found.keys() == wanted.keys()
    assert found["diffusion_model.img_in.weight"].shape == (32, 128)
    for key, weight in wanted.items():
        torch.testing.assert_close(found[key], weight, rtol=0, atol=1e-6)
    key = "diffusion_model.single_blocks.0.norm.key_norm.weight"
    half = merged(load(model, strength=0.5)[0])[key]
    torch.testing.assert_close(half, (weights[key] + wanted[key]) / 2, rtol=0, atol=1e-6)


def test_a_wider_layer_samples(folder):  # noqa: F811
    """With zeros for the new inputs, which the host gives where no control image is."""
    model = tiny.model("flux")
    tensors = control_lora(model)
    save_file(tensors, folder / "x.safetensors")
    by_core, _ = comfy.sd.load_lora_for_models(model, None, tensors, 1.0, 0.0)
    tiny.HANDED_OUT.append(by_core)
    out = tiny.sample(load(model)[0], "flux")
    torch.testing.assert_close(out, tiny.sample(by_core, "flux"), rtol=0, atol=1e-4)
    assert not torch.equal(out, tiny.sample(tiny.model("flux"), "flux"))
