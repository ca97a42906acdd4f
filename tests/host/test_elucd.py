"""EluCD in the host: the gradient is that of the image, in and out of inference mode."""

from types import SimpleNamespace

import pytest
import torch

import nodes
from guidekit.benchmarks._nodes import run_node
from guidekit.nodes.elucd import EluCD
from guidekit.nodes.host.classifiers.clip import ClipClassifier
from guidekit.nodes.host.classifiers.decode import by_colour
from guidekit.nodes.image_classifier import ImageClassifier
from guidekit.samplers.guidance.elucd import strength
from guidekit.samplers.reductions import rms
from guidekit.tests.host import guides, probes, tiny
from guidekit.tests.host.test_gfcg import first, predicted


def on(model, **settings):
    return run_node(EluCD, model=model, **{"classifier": guides.classifier(), "target": "dog", **settings})


@pytest.mark.parametrize("family", ["unet", "flux", "sd3"])
@pytest.mark.parametrize(("tau_1", "tau_2", "softplus"), [(1.0, 0.5, 3.0), (2.0, 0.0, 1.0), (1.0, 1.0, 0.0)])
def test_the_direction_is_the_gradient(family, tau_1, tau_2, softplus):
    """Uphill in the objective; the length is the schedule's."""
    cond, classifier = predicted(family, 11), guides.classifier()
    settings = {"classifier": classifier, "tau_1": tau_1, "tau_2": tau_2, "softplus": softplus}
    model = on(tiny.model(family), scale=0.1, **settings)
    change = first(model, family, cfg=1.0) - cond
    x = cond.clone().requires_grad_()
    images = by_colour(x, model.get_model_object("latent_format"))
    f = classifier.network(classifier.prepared(images), softplus or None)
    [g] = torch.autograd.grad(tau_1 * f[0, 1] - torch.log(torch.exp(tau_2 * f[0]).sum()), x)
    assert probes.distance(change, strength(0.1, 0.0) * rms(cond) * g / rms(g)) < 1e-3


@pytest.mark.parametrize("vae", [False, True])
def test_in_inference_mode(vae):
    """As the host runs graphs, with weights that were loaded in it."""
    settings = {"vae": _Vae() if vae else None, "scale": 0.1}
    wanted = first(on(tiny.model("unet"), **settings), "unet")
    with torch.inference_mode():
        classifier = run_node(ImageClassifier, file="demo")
        assert classifier.network.fc.weight.is_inference()
        model = on(tiny.model("unet"), classifier=classifier, target="red", **settings)
        found = first(model, "unet")
        again = first(on(tiny.model("unet"), **settings), "unet")
    assert torch.isfinite(found).all()
    assert probes.distance(found, wanted) > 1e-6
    assert torch.equal(again, wanted)


class _Vae:
    """A decoder with a gradient: 4 channels to 3, in the form of the host's VAE."""

    device, vae_dtype = torch.device("cpu"), torch.float32

    def __init__(self):
        class Network(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.mix = torch.nn.Conv2d(4, 3, 1)
                self.mix.weight.data = torch.linspace(-1, 1, 12).reshape(3, 4, 1, 1) * 0.1
                self.mix.bias.data.zero_()

            def decode(self, latent):
                return self.mix(latent)

        self.first_stage_model = Network()
        self.patcher = guides.ModelPatcher(self.first_stage_model, load_device=self.device, offload_device=self.device)

    def decode(self, latent):
        return self.process_output(self.first_stage_model.decode(latent)).movedim(1, -1)

    def process_output(self, image):
        return image.add_(1.0).div_(2.0).clamp_(0.0, 1.0)


@pytest.mark.parametrize("each_channel", [False, True])
def test_through_a_vae(each_channel, monkeypatch):
    """The chain of the latent's scale, the decoder and the classifier, against autograd over all of it."""
    vae, classifier, model = _Vae(), guides.classifier(), tiny.model("unet")
    if each_channel:  # as latents of Wan and others are scaled
        scale = torch.tensor([0.5, 1.0, 2.0, 4.0]).reshape(1, 4, 1, 1)
        monkeypatch.setattr(model.model, "process_latent_out", lambda latent: latent * scale + 0.3)
    cond = predicted("unet", 11)
    change = first(on(model, classifier=classifier, scale=0.1, vae=vae), "unet", cfg=1.0) - cond
    x = cond.clone().requires_grad_()
    image = vae.process_output(vae.first_stage_model.decode(model.model.process_latent_out(x)).clone())
    f = classifier.network(classifier.prepared(image), 3.0)
    [g] = torch.autograd.grad((f[:, 1] - torch.logsumexp(0.5 * f, 1)).sum(), x)
    assert probes.distance(change, 0.1 * rms(cond) * g / rms(g)) < 1e-3


def test_the_demo_s_vae():
    from guidekit.benchmarks._demo import Demo

    demo = Demo("unet", 2)
    tiny.HANDED_OUT.append(demo.vae.patcher)
    model = run_node(
        EluCD, model=demo.model, classifier=run_node(ImageClassifier, file="demo"), target="red", vae=demo.vae
    )
    plain, guided = (demo.sample(m, 1.0, steps=3) for m in (demo.model, model))
    assert probes.distance(guided, plain) > 1e-3


def test_every_sample_is_its_own():
    model = on(tiny.model("flux"), scale=0.2)
    together = first(model, "flux", batch=3)
    assert probes.distance(together[:1], first(on(tiny.model("flux"), scale=0.2), "flux")) < 1e-4


@pytest.mark.parametrize("family", ["unet", "flux"])
def test_the_schedule_is_by_noise_level(family):
    """ComfyUI's simple schedule is even in the model's own time: step i of n begins when i / n lies behind."""
    shown = probes.record_predictions(model := on(tiny.model(family), scale=0.1))
    tiny.sample(model, family, steps=4, cfg=1.0)
    for i, step in enumerate(shown.steps):
        size = rms(step["denoised"] - step["cond_denoised"]) / rms(step["cond_denoised"])
        assert size.item() == pytest.approx(strength(0.1, i / 4), rel=1e-2)


def test_two_samplers_give_what_one_gives():
    """Ten steps in one KSamplerAdvanced, or five and five."""

    def sample(latent, noise, start, end, leftover):
        model = on(tiny.model("unet"), scale=0.1)
        prompts = tiny.conditioning("unet", 11), tiny.conditioning("unet", 22)
        settings = (noise, 3, 10, 4.0, "euler", "simple", *prompts, latent, start, end, leftover)
        return nodes.KSamplerAdvanced().sample(model, *settings)[0]

    empty = {"samples": torch.zeros(1, 4, 8, 8)}
    whole = sample(empty, "enable", 0, 10, "disable")
    first_half = sample(empty, "enable", 0, 5, "enable")
    halves = sample(first_half, "disable", 5, 10, "disable")
    assert probes.distance(halves["samples"], whole["samples"]) < 1e-4


# Bad input


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"target": "owls"}, "has no class 'owls'"),
        ({"target": ""}, "has no class ''"),
        ({"tau_1": 0.5, "tau_2": 1.0}, "tau_2 is 1 and tau_1 0.5"),
        ({"classifier": ClipClassifier(SimpleNamespace(patcher=None), None)}, "connect Image Classifier"),
    ],
)
def test_bad_input(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        on(tiny.model("unet"), **settings)


def test_videos():
    with pytest.raises(ValueError, match="is a video"):
        tiny.sample(on(tiny.model("wan")), "wan")
