"""The demo models in the real host: tokens, autoencoder, networks that learn."""

import logging

import pytest
import torch

from guidekit.demo.training.diffusion import ENDS, Diffusion, Loss
from guidekit.demo.training.latents import say, tokens_of
from guidekit.demo.training.optimizer import Optimizer
from guidekit.demo.world import models
from guidekit.demo.world.autoencoder import CHANNELS, DOWNSCALE, Autoencoder
from guidekit.demo.world.captions import plain_caption, random_captions
from guidekit.demo.world.scenes import generator_of, random_scenes
from guidekit.demo.world.words import DemoTokenizer


@pytest.fixture(autouse=True)
def in_training(monkeypatch):
    import comfy.model_management

    monkeypatch.setattr(comfy.model_management, "in_training", True)


def test_training_and_host_read_captions_alike():
    scenes = random_scenes(40, generator_of("tests", 30))
    captions = ["", *random_captions(scenes, generator_of("tests", 31)), *(plain_caption(scenes, i) for i in range(40))]
    tokenizer = DemoTokenizer()
    hosts = [[token for token, _ in tokenizer.tokenize_with_weights(c)["demo"][0]] for c in captions]
    assert tokens_of(captions).tolist() == hosts


def test_unknown_words_are_logged(caplog):
    with caplog.at_level(logging.WARNING):
        [row] = DemoTokenizer().tokenize_with_weights("a red elephant")["demo"]
    assert "elephant" in caplog.text
    [same] = DemoTokenizer().tokenize_with_weights("a red")["demo"]
    assert row == same


@pytest.mark.parametrize("family", tuple(models.FAMILIES))
def test_training_encodes_as_the_host_does(family):
    torch.manual_seed(1)
    model = Diffusion(family)
    weights = {k: v.detach() for k, v in model.checkpoint().items()}
    clip = models.load_clip(weights)
    captions = ["a red ball left of a blue cube on grass", ""]
    with torch.no_grad():
        context, pooled = model.encode(tokens_of(captions).long())
    for i, caption in enumerate(captions):
        host, hosts_pooled = clip.encode_from_tokens(clip.tokenize(caption), return_pooled=True)
        assert torch.allclose(context[i], host[0].cpu(), atol=1e-5)
        assert torch.allclose(pooled[i], hosts_pooled[0].cpu(), atol=1e-5)


def test_order_matters_to_the_text_encoder():
    torch.manual_seed(1)
    model = Diffusion("unet")
    tokens = tokens_of(["a red ball left of a blue cube", "a blue cube left of a red ball"]).long()
    with torch.no_grad():
        context, pooled = model.encode(tokens)
    assert (pooled[0] - pooled[1]).abs().max() > 1e-3


@pytest.mark.parametrize("family", tuple(models.FAMILIES))
def test_every_weight_learns(family):
    torch.manual_seed(2)
    model = Diffusion(family)
    scenes = random_scenes(6, generator_of("tests", 32))
    latents = torch.randn((6, CHANNELS, 16, 16), generator=generator_of("tests", 33)).half()
    loss_of, optimizer = Loss(model, latents, say(scenes, 0), batch=6), Optimizer(model, ENDS[family])
    generator = generator_of("tests", 34)
    moved = {name: False for name, p in model.named_parameters() if p.requires_grad}
    for _ in range(4):  # what is behind a weight of zero learns one step later
        model.zero_grad(set_to_none=True)
        loss_of(generator).backward()
        for name, p in model.named_parameters():
            if p.grad is not None and p.grad.any():
                moved[name] = True
        optimizer.step(1.0)
    unused = {name for name, yes in moved.items() if not yes}
    assert unused <= {"text.clip_demo.logit_scale"}


@pytest.mark.parametrize("family", tuple(models.FAMILIES))
def test_files_stay_small(family):
    weights = Diffusion(family).checkpoint()
    assert 2 * sum(w.numel() for w in weights.values()) <= 12e6
    assert 2 * sum(w.numel() for w in Autoencoder().state_dict().values()) <= 1.5e6


def test_the_autoencoder_is_a_vae_of_the_host():
    torch.manual_seed(3)
    vae = models.load_vae(Autoencoder().state_dict())
    images = torch.rand((2, 64, 48, 3))
    latents = vae.encode(images)
    assert latents.shape == (2, CHANNELS, 64 // DOWNSCALE, 48 // DOWNSCALE)
    assert vae.decode(latents).shape == images.shape
    with torch.inference_mode():
        expected = vae.first_stage_model.decode(latents).add(1).div(2).clamp(0, 1).movedim(1, -1)
    assert torch.allclose(vae.decode(latents), expected, atol=1e-5)
