"""Adaptive guidance: when it stops, what it saves, what it forgets."""

import comfy.model_management
import comfy.sample
import comfy.samplers
import pytest
import torch

from guidekit.benchmarks._nodes import run_node
from guidekit.nodes.adaptive_guidance import AdaptiveGuidance
from guidekit.nodes.guidance_interval import GuidanceInterval
from guidekit.tests.host import probes, tiny, toy

STEPS = 8


def adaptive(model, **settings):
    return run_node(AdaptiveGuidance, model=model, **{"space": "raw", **settings})


class Meeting(torch.nn.Module):
    """Two predictions that come closer as sigma falls; how fast depends on the sample. `back` sends them apart again
    below that time."""

    dtype = torch.float32

    def __init__(self, back=0.0):
        super().__init__()
        self.back = back

    def forward(self, x, timestep, context=None, control=None, transformer_options=None, **kwargs):
        shape = (-1, *[1] * (x.ndim - 1))
        t = (timestep / 1000).reshape(shape)
        apart = torch.where(t < self.back, 1.0, t**2)
        prompt = context.mean((1, 2)).reshape(shape)
        speed = x.flatten(1).std(1).reshape(shape) if x.ndim else 1
        pattern = torch.linspace(-1, 1, x[0].numel()).reshape(x.shape[1:])
        return 0.4 * x + 2 * torch.cos(7 * pattern) + prompt * apart * speed * pattern


def meeting(parameterisation="flow", rank=4, **settings):
    model = toy.model(rank, parameterisation)
    model.model.diffusion_model = Meeting(**settings)
    return model


def cosines(seen, parameterisation, space):
    """From the recorded predictions by another formula: flattened, numpy, float64; the smallest of the batch."""
    out = []
    for step in seen.steps:
        x, sigma = step["input"].double(), float(step["sigma"][0])
        pair = [step[k].double() for k in ("cond_denoised", "uncond_denoised")]
        if space == "raw":
            shrink = {"v": 1 / (1 + sigma**2), "edm": 1 / (1 + sigma**2)}.get(parameterisation, 1.0)
            pair = [x * shrink - d for d in pair]
        flat = [d.flatten(1).numpy() for d in pair]
        out.append(min((a @ b) / ((a @ a) * (b @ b)) ** 0.5 for a, b in zip(*flat)))
    return out


def plain(parameterisation, rank=4, batch=1, **options):
    model = meeting(parameterisation, rank)
    seen = probes.record_predictions(model)
    result = toy.sample(model, rank, steps=STEPS, batch=batch, **options)
    return result, seen


@pytest.mark.parametrize("parameterisation", ["eps", "v", "edm", "flow"])
@pytest.mark.parametrize("space", ["raw", "x0"])
@pytest.mark.parametrize("batch", [1, 3])
def test_stops_after_the_step_that_crosses(parameterisation, space, batch):
    """k guided steps, then the positive alone, bit for bit: 2 k + (N - k) evaluations, k from independent cosines."""
    _, seen = plain(parameterisation, batch=batch)
    found = cosines(seen, parameterisation, space)
    # Eps predictions agree first of all where there is nothing but noise: begin where they part most.
    threshold = sorted(found)[STEPS // 2] - 1e-6
    guided = next(i for i, c in enumerate(found) if c >= threshold) + 1
    model = adaptive(meeting(parameterisation), space=space, threshold=threshold)
    counted, steps = probes.count_evaluations(model), probes.record_predictions(model)
    toy.sample(model, steps=STEPS, batch=batch)
    assert counted.chunks == [2] * guided + [1] * (STEPS - guided)
    assert [s["cond_scale"] for s in steps.steps] == [4.0] * guided + [1.0] * (STEPS - guided)
    for i, (ours, theirs) in enumerate(zip(steps.steps, seen.steps)):
        if i < guided:  # up to and with the step that crosses it is CFG
            assert torch.equal(ours["denoised"], theirs["denoised"])
        else:
            assert torch.equal(ours["denoised"], ours["cond_denoised"])


@pytest.mark.parametrize("parameterisation", ["eps", "v", "flow"])
@pytest.mark.parametrize("rank", [3, 4, 5])
def test_a_threshold_above_1_is_cfg(parameterisation, rank):
    model = adaptive(meeting(parameterisation, rank), threshold=2.0)
    result, _ = plain(parameterisation, rank, batch=3)
    counted = probes.count_evaluations(model)
    assert torch.equal(toy.sample(model, rank, steps=STEPS, batch=3), result)
    assert counted.total == 2 * STEPS


def test_it_never_returns():
    """The predictions part again below t = 0.4: the negative stays away."""
    without = meeting(back=0.4)
    seen = probes.record_predictions(without)
    toy.sample(without, steps=STEPS)
    found = cosines(seen, "flow", "raw")
    threshold = max(found) - 1e-6
    first = next(i for i, c in enumerate(found) if c >= threshold)
    assert min(found[first:]) < threshold, "the toy does not part again"
    model = adaptive(meeting(back=0.4), threshold=threshold)
    counted = probes.count_evaluations(model)
    toy.sample(model, steps=STEPS)
    assert counted.chunks == [2] * (first + 1) + [1] * (STEPS - first - 1)


def test_equal_prompts_cost_one_guided_step():
    model = adaptive(meeting())
    counted = probes.count_evaluations(model)
    toy.sample(model, steps=STEPS, positive=1.0, negative=1.0)
    assert counted.chunks == [2] + [1] * (STEPS - 1)


def test_all_samples_of_a_batch_have_to_agree():
    """A threshold that the mean of the batch passes and its worst sample does not: the run goes on guided."""
    x = toy.noise(4, 3) * torch.tensor([1.0, 4.0, 7.0]).reshape(3, 1, 1, 1)

    def sample(model):
        settings = (STEPS, 4.0, "euler", "simple", toy.conditioning(2.0), toy.conditioning(-1.5), torch.zeros_like(x))
        counted, seen = probes.count_evaluations(model), probes.record_predictions(model)
        comfy.sample.sample(model, x, *settings, seed=3, disable_pbar=True)
        return counted.chunks.count(2), seen

    _, seen = sample(meeting("eps"))
    by_sample = [
        torch.nn.functional.cosine_similarity(s["cond_denoised"].flatten(1), s["uncond_denoised"].flatten(1))
        for s in seen.steps
    ]
    step = max(range(STEPS), key=lambda i: by_sample[i].mean() - by_sample[i].min())
    threshold = (by_sample[step].mean() + by_sample[step].min()).item() / 2
    guided = next(i for i, cosine in enumerate(by_sample) if cosine.min() >= threshold) + 1
    assert guided > next(i for i, cosine in enumerate(by_sample) if cosine.mean() >= threshold) + 1
    assert sample(adaptive(meeting("eps"), threshold=threshold, space="x0"))[0] == guided


def test_steps_without_a_negative_say_nothing():
    """An interval that begins in the middle: before it there is nothing to compare with."""
    model = run_node(GuidanceInterval, model=adaptive(meeting(), threshold=0.5), limits="percent", start_percent=0.5)
    counted = probes.count_evaluations(model)
    toy.sample(model, steps=STEPS)
    assert counted.chunks == [1] * 4 + [2] + [1] * 3


@pytest.mark.parametrize("warm_up", [1, 3, 8, 20])
def test_warm_up(warm_up):
    model = adaptive(meeting(), threshold=-1.0, warm_up=warm_up)
    counted = probes.count_evaluations(model)
    toy.sample(model, steps=STEPS)
    guided = min(warm_up, STEPS)
    assert counted.chunks == [2] * guided + [1] * (STEPS - guided)


def test_start_and_end():
    """Before the start nothing is compared; after the end CFG is back."""
    model = adaptive(meeting(), threshold=-1.0, start_percent=0.3, end_percent=0.7)
    counted = probes.count_evaluations(model)
    toy.sample(model, steps=10)
    assert counted.chunks == [2] * 3 + [2] + [1] * 3 + [2] * 3


@pytest.mark.parametrize("sampler", ["heun", "dpm_2", "dpmpp_2s_ancestral"])
def test_both_evaluations_of_a_step_agree(sampler):
    """The step that crosses is guided in both of its evaluations."""
    model = adaptive(meeting(), threshold=-1.0, warm_up=2)
    counted = probes.count_evaluations(model)
    toy.sample(model, steps=4, sampler=sampler)
    assert counted.chunks == [2] * 4 + [1] * 3


# Nothing is left behind


def test_the_next_run_starts_guided():
    model = adaptive(meeting(), threshold=0.9)
    counted = probes.count_evaluations(model)
    first = toy.sample(model, steps=STEPS)
    chunks, counted.chunks = counted.chunks, []
    assert torch.equal(toy.sample(model, steps=STEPS), first)
    assert counted.chunks == chunks
    assert chunks[0] == 2
    assert 1 in chunks


def test_after_an_interrupt_it_starts_guided():
    model = adaptive(meeting(), threshold=-1.0)

    def stop(step, *_):
        if step == 3:
            raise comfy.model_management.InterruptProcessingException()

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        toy.sample(model, steps=STEPS, callback=stop)
    counted = probes.count_evaluations(model)
    toy.sample(model, steps=STEPS)
    assert counted.chunks == [2] + [1] * (STEPS - 1)


def test_img2img_and_a_second_sampler_start_guided():
    """From a lower noise level than the first run ended its guidance at."""
    model = adaptive(meeting(), threshold=-1.0)
    toy.sample(model, steps=STEPS)
    counted = probes.count_evaluations(model)
    toy.sample(model, steps=4, denoise=0.3)
    assert counted.chunks == [2] + [1] * 3


def test_after_a_restart_it_is_guided_again():
    """Noise added in the middle of a run."""

    def restart(model, x, sigmas, extra_args=None, callback=None, disable=None):
        for i, sigma in enumerate(sigmas[:-1]):
            x = model(x, sigma * x.new_ones(len(x)), **extra_args)
            callback({"i": i, "x": x, "denoised": x})
        return x

    model = adaptive(meeting(), threshold=-1.0)
    counted = probes.count_evaluations(model)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(toy.conditioning(2.0), toy.conditioning(-1.5))
    guider.set_cfg(4.0)
    x = toy.noise(4)
    sigmas = torch.tensor([0.9, 0.6, 0.3, 0.8, 0.4, 0.0])
    guider.sample(x, torch.zeros_like(x), comfy.samplers.KSAMPLER(restart), sigmas, disable_pbar=True)
    assert counted.chunks == [2, 1, 1, 2, 1]


def test_the_default_is_right_for_every_parameterisation():
    """Raw outputs of an eps model are mostly noise at first, and nearly parallel; images of 0.5 and -0.3 are not."""
    by_space = {}
    for space in ("x0", "raw"):
        model = run_node(AdaptiveGuidance, model=toy.fixed(4, "eps"), space=space)
        counted = probes.count_evaluations(model)
        toy.sample(model, steps=STEPS, positive=0.5, negative=-0.3)
        by_space[space] = counted.chunks.count(2)
    assert by_space["raw"] == 1
    assert by_space["x0"] == STEPS
    [space] = [i for i in AdaptiveGuidance.define_schema().inputs if i.id == "space"]
    assert space.default == "x0"


# What the user sees


def test_it_tells_where_it_crossed_and_what_it_saved(caplog):
    caplog.set_level("INFO")
    toy.sample(adaptive(meeting(), threshold=-1.0, warm_up=2), steps=STEPS)
    assert "Adaptive guidance: crossed -1 (raw) in step 2 of 8; 6 evaluations saved. Cosine by step: 1: " in caplog.text
    caplog.clear()
    toy.sample(adaptive(meeting(), threshold=0.99999, space="x0"), steps=2)
    told = "had no effect in this run: the predictions never agreed to 0.99999 (x0). Cosine by step: 1: "
    assert told in caplog.text
    caplog.clear()
    toy.sample(adaptive(meeting(), threshold=-1.0, warm_up=STEPS), steps=STEPS)
    assert "had no effect in this run: the predictions agreed too late to save anything (warm_up 8)." in caplog.text


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_saves_on_every_family(family):
    model = adaptive(tiny.model(family), threshold=-1.0)
    counted = probes.count_evaluations(model)
    tiny.sample(model, family)
    assert counted.chunks == [2, 1, 1, 1]


def test_packed_latents_wait_for_both_streams():
    """Audio and video in one latent: each stream has to agree."""
    import comfy.nested_tensor

    x = comfy.nested_tensor.NestedTensor([torch.randn(1, 4, 8, 8), torch.randn(1, 2, 6)])
    model = adaptive(toy.model(3, "flow"), threshold=0.5)
    model.model.diffusion_model = toy.Elementwise()
    counted = probes.count_evaluations(model)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(toy.conditioning(2.0), toy.conditioning(-1.5))
    guider.set_cfg(4.0)
    euler = comfy.samplers.sampler_object("euler")
    zeros = comfy.nested_tensor.NestedTensor([torch.zeros(1, 4, 8, 8), torch.zeros(1, 2, 6)])
    result = guider.sample(x, zeros, euler, torch.tensor([1.0, 0.7, 0.3, 0.0]), disable_pbar=True)
    assert [tuple(part.shape) for part in result.unbind()] == [(1, 4, 8, 8), (1, 2, 6)]
    assert counted.chunks[0] == 2
