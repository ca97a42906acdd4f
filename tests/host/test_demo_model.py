"""The demo models under the host's stock nodes."""

import comfy.model_management
import comfy.sd
import pytest
import torch

import nodes
from guidekit.demo.training.autoencoder import psnr
from guidekit.demo.world import models
from guidekit.demo.world.captions import plain_caption
from guidekit.demo.world.judge import find, load_judge
from guidekit.demo.world.models import CHANNELS, DOWNSCALE, MODELS
from guidekit.demo.world.render import SIZE, draw
from guidekit.demo.world.scenes import generator_of, random_scenes
from guidekit.demo.world.vocabulary import END, MAX_LENGTH, PAD, START, VOCABULARY
from guidekit.nodes.demo_model import DemoModel

PROMPT = "a large glossy red ball left of a small metal blue cube on grass at sunset"


@pytest.fixture(scope="module", params=MODELS)
def loaded(request):
    return DemoModel.execute(request.param).args


@pytest.fixture(scope="module")
def vae():
    return DemoModel.execute("unet").args[2]


def image(model, clip, vae, prompt=PROMPT, negative="", steps=2, seed=1, batch=1, cfg=3.0, denoise=1.0, latent=None):
    encode = nodes.CLIPTextEncode().encode
    latent = latent or nodes.EmptyLatentImage().generate(SIZE, SIZE, batch)[0]
    prompts = encode(clip, prompt)[0], encode(clip, negative)[0]
    with torch.inference_mode():
        samples = nodes.KSampler().sample(model, seed, steps, cfg, "euler", "normal", *prompts, latent, denoise)[0]
        return nodes.VAEDecode().decode(vae, samples)[0]


def test_stock_nodes_make_images(loaded):
    result = image(*loaded, batch=3)
    assert result.shape == (3, SIZE, SIZE, 3)
    assert 0 <= result.min() < result.max() <= 1


def test_two_runs_are_equal(loaded):
    assert torch.equal(image(*loaded), image(*loaded))


def test_a_run_after_unloading_is_equal(loaded):
    before = image(*loaded)
    comfy.model_management.unload_all_models()
    assert torch.equal(image(*loaded), before)


def test_clones_and_loras_do_not_touch_the_original(loaded):
    model, clip, vae = loaded
    before = image(*loaded)
    key = next(k for k in model.model.state_dict() if k.endswith(("attn1.to_q.weight", "img_attn.qkv.weight")))
    out, into = model.model.state_dict()[key].shape
    up, down = torch.ones(out, 2), torch.ones(2, into)
    name = key.removesuffix(".weight")
    lora = {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down, f"{name}.alpha": torch.tensor(2.0)}
    changed, _ = comfy.sd.load_lora_for_models(model, None, lora, 0.3, 0.0)
    assert (image(changed, clip, vae) - before).abs().max() > 1e-4
    assert torch.equal(image(*loaded), before)


def test_the_prompt_matters(loaded):
    assert (image(*loaded) - image(*loaded, prompt="a small blue cone on sand by day")).abs().mean() > 0.01


def test_weights_matter(loaded):
    _, clip, _ = loaded
    encode = nodes.CLIPTextEncode().encode
    plain, heavy, light = (encode(clip, f"a {word} ball")[0][0][0] for word in ("red", "(red:1.3)", "(red:0.5)"))
    assert plain.shape == heavy.shape
    # The host weighs a token's embedding against that of the empty prompt, linearly.
    assert torch.allclose((heavy - plain) / 0.3, (light - plain) / -0.5, atol=1e-3)
    assert (heavy - plain).abs().max() > 1e-3


def test_unknown_words_are_left_out_and_logged(loaded, caplog):
    _, clip, _ = loaded
    tokens = clip.tokenize("a photorealistic red ball, 8k")["demo"][0]
    words = [VOCABULARY[token] for token, _ in tokens if token != PAD]
    assert words == ["<start>", "a", "red", "ball", ",", "<end>"]
    assert "8k, photorealistic" in caplog.text
    assert "cylinder" in caplog.text  # what it knows instead


def test_a_long_prompt_goes_on_in_a_second_chunk(loaded):
    _, clip, _ = loaded
    long = ", ".join([PROMPT] * 3)
    chunks = clip.tokenize(long)["demo"]
    assert [len(c) for c in chunks] == [MAX_LENGTH, MAX_LENGTH]
    assert all(c[0][0] == START for c in chunks)
    assert all(END in [t for t, _ in c] for c in chunks)
    assert torch.isfinite(image(*loaded, prompt=long)).all()


def test_the_autoencoder_gives_scenes_back(vae):
    images = draw(random_scenes(48, generator_of("tests", 90)))[0]
    latent = vae.encode(images.movedim(1, -1))
    assert latent.shape == (48, CHANNELS, SIZE // DOWNSCALE, SIZE // DOWNSCALE)
    back = vae.decode(latent).movedim(-1, 1).cpu()
    assert psnr(2 * back - 1, 2 * images - 1).mean() > 28


def test_tiles_decode_as_the_whole_does(vae):
    """Except near their edges, where they are blended."""
    images = draw(random_scenes(4, generator_of("tests", 91)))[0]
    wide = torch.cat(list(images), -1)[None].movedim(1, -1)
    latent = vae.encode(wide)
    whole = vae.decode(latent)
    tiled = vae.decode_tiled(latent, tile_x=32, tile_y=32, overlap=8)
    assert tiled.shape == whole.shape
    assert (tiled - whole).abs().max() < 0.02


def test_a_preview_looks_like_the_image(vae):
    import latent_preview

    images = draw(random_scenes(4, generator_of("tests", 92)))[0]
    shape = models.DemoLatent()
    latent = shape.process_in(vae.encode(images.movedim(1, -1)).cpu())
    factors, bias = torch.tensor(shape.latent_rgb_factors), torch.tensor(shape.latent_rgb_factors_bias)
    shown = (torch.einsum("bchw,cr->brhw", latent, factors) + bias[:, None, None]) / 2 + 0.5
    small = torch.nn.functional.avg_pool2d(images, DOWNSCALE)
    assert (shown - small).square().mean().sqrt() < 0.05
    previewer = latent_preview.Latent2RGBPreviewer(shape.latent_rgb_factors, shape.latent_rgb_factors_bias)
    assert previewer.decode_latent_to_preview(latent).size == (SIZE // DOWNSCALE, SIZE // DOWNSCALE)


def test_image_to_image_keeps_the_image(loaded):
    model, clip, vae = loaded
    scenes = random_scenes(2, generator_of("tests", 93))
    images = draw(scenes)[0].movedim(1, -1)
    latent = {"samples": vae.encode(images)}
    result = image(model, clip, vae, plain_caption(scenes, 0), denoise=0.2, steps=5, latent=latent)
    assert (result - images).abs().mean() < (image(model, clip, vae, batch=2) - images).abs().mean()


@pytest.mark.parametrize(("name", "least", "most"), [("unet", 0.7, 1), ("dit", 0.7, 1), ("unet_early", 0, 0.4)])
def test_images_show_what_the_prompt_says(name, least, most):
    """The numbers are the benchmark's (`python dev.py bench demo`). The briefly trained model is a worse one."""
    model, clip, vae = DemoModel.execute(name).args
    scenes = random_scenes(12, generator_of("tests", 94), "known", 2)
    encoded = [clip.encode_from_tokens(clip.tokenize(plain_caption(scenes, i)), return_pooled=True) for i in range(12)]
    context, pooled = (torch.cat(part) for part in zip(*encoded))
    [[nothing, extra]] = nodes.CLIPTextEncode().encode(clip, "")[0]
    latent = nodes.EmptyLatentImage().generate(SIZE, SIZE, 12)[0]
    prompts = [[context, {"pooled_output": pooled}]], [[nothing, extra]]
    with torch.inference_mode():
        samples = nodes.KSampler().sample(model, 5, 15, 3.0, "euler", "normal", *prompts, latent)[0]
        images = vae.decode(samples["samples"]).movedim(-1, 1).cpu()
    right = find(load_judge(), images).right(scenes, "shape", "colour").float().mean()
    assert least <= right <= most


def test_the_judge_knows_drawn_scenes():
    scenes = random_scenes(60, generator_of("tests", 95), "any", 2)
    found = find(load_judge(), draw(scenes)[0])
    assert found.right(scenes, "shape", "colour").float().mean() >= 0.95


def test_all_weights_together_stay_small():
    folder = models.weights_file("unet").parent
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 32 * 2**20
