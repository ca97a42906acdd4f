"""GFCG in the host: the right prompt for each image, at the stated cost."""

import comfy.model_management
import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP

from guidekit.benchmarks._nodes import run_node
from guidekit.nodes.gfcg import ADD, AUTOGUIDANCE, GFCG, SWAP
from guidekit.tests.host import guides, probes, tiny
from guidekit.tests.host.test_exact import guider as exact_guider
from guidekit.tests.host.test_exact import inverted, sampled

SURE = (1.0, 0.0, 0.0, 0.0)
DOG = (0.6, 0.3, 0.1, 0.0)  # confusion 0.4, with the dog
OWL = (0.2, 0.1, 0.1, 0.6)  # confusion 0.8, with the owl


def on(model, family, classifier, words=guides.WORDS, tokens=(7, 7, 7, 7), **settings):
    given = {"classifier": classifier, "candidates": guides.candidates(family, words, tokens), **settings}
    return run_node(GFCG, model=model, **given)


def predicted(family, seed, batch=1, model=None, tokens=7):
    """What the network alone makes of a prompt in the first step."""
    prompt = tiny.conditioning(family, seed, tokens)
    return first(model or tiny.model(family), family, cfg=1.0, batch=batch, positive=prompt)


def first(model, family, **options):
    """The guided prediction of the first step, in the host's units."""
    seen = []
    watched = model.clone()
    watched.set_model_sampler_post_cfg_function(lambda args: seen.append(args["denoised"].clone()) or args["denoised"])
    tiny.sample(watched, family, steps=1, **options)
    return seen[0]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_away_from_the_most_confusing_candidate(family):
    """D_cfg + scale confusion (D_c - D_k)."""
    dog, positive, negative = (predicted(family, seed) for seed in (31, 11, 22))
    wanted = negative + 4 * (positive - negative) + 2.5 * 0.4 * (positive - dog)
    found = first(on(tiny.model(family), family, guides.always(*DOG), scale=2.5), family)
    assert probes.distance(found, wanted) < 1e-4
    plain = first(tiny.model(family), family)
    assert probes.distance(found, plain) > 5e-4


@pytest.mark.parametrize("family", ["unet", "flux"])
@pytest.mark.parametrize(("measure", "strength"), [("miss", 0.4), ("margin", 1 / 3), ("max", 0.3), ("const", 1.0)])
def test_measures(family, measure, strength):
    dog, positive = (predicted(family, seed) for seed in (31, 11))
    found = first(on(tiny.model(family), family, guides.always(*DOG), scale=2.0, measure=measure), family, cfg=1.0)
    assert probes.distance(found, positive + 2 * strength * (positive - dog)) < 1e-4


def test_temperature():
    """Probabilities to the power of 1/2, made to sum to 1."""
    dog, positive = (predicted("unet", seed) for seed in (31, 11))
    p = torch.tensor(DOG).sqrt()
    strength = 1 - (p / p.sum())[0].item()
    found = first(on(tiny.model("unet"), "unet", guides.always(*DOG), scale=2.0, temperature=2.0), "unet", cfg=1.0)
    assert probes.distance(found, positive + 2 * strength * (positive - dog)) < 1e-4


@pytest.mark.parametrize("family", ["unet", "sd3", "flux", "wan", "lumina2"])
@pytest.mark.parametrize("tokens", [(7, 7, 7, 7), (7, 7, 7, 5)])
@pytest.mark.parametrize("combination", [ADD, SWAP])
def test_every_image_has_its_own_reference(family, tokens, combination):
    """A batch is what its images are by themselves; prompts of one length take one evaluation, others one each."""
    rows = (DOG, SURE, OWL)
    settings = {"tokens": tokens, "combination": combination}
    model = on(tiny.model(family), family, guides.each(*rows), **settings)
    seen = probes.count_evaluations(model)
    together = first(model, family, batch=3)
    for b, row in enumerate(rows):
        # The same noise, as the only image.
        single = on(tiny.model(family), family, guides.always(*row), **settings)
        start = tiny.noise(family, 3)[b : b + 1]
        alone = _first_of(single, family, start)
        assert probes.distance(together[b : b + 1], alone) < 1e-4
    kinds = {ADD: 2, SWAP: 3}[combination]  # dog and owl, and in the negative's place the negative too
    assert seen.total == {ADD: 2, SWAP: 1}[combination] + (1 if len({*tokens}) == 1 else kinds)


@pytest.mark.parametrize("family", ["unet", "flux"])
def test_candidates_of_each_image(family):
    """Conditionings with a row for each image of the batch."""
    rows = (DOG, OWL)
    many = guides.candidates(family)
    batched = [
        [[torch.cat([c, c.flip(1)]), {k: torch.cat([v, v.flip(1)]) for k, v in o.items()}]]
        for [[c, o]] in many.conditionings
    ]
    given = {"classifier": guides.each(*rows), "candidates": type(many)(many.labels, tuple(batched))}
    model = run_node(GFCG, model=tiny.model(family), **given)
    seen = probes.count_evaluations(model)
    together = first(model, family, batch=2)
    assert seen.total == 3
    for b, row in enumerate(rows):
        own = [[[c[b : b + 1], {k: v[b : b + 1] for k, v in o.items()}]] for [[c, o]] in batched]
        given = {"classifier": guides.always(*row), "candidates": type(many)(many.labels, tuple(own))}
        single = run_node(GFCG, model=tiny.model(family), **given)
        assert probes.distance(together[b : b + 1], _first_of(single, family, tiny.noise(family, 2)[b : b + 1])) < 1e-4


def _first_of(model, family, start, positive=None):
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive or tiny.conditioning(family, 11), tiny.conditioning(family, 22))
    guider.set_cfg(4.0)
    seen = []
    model.set_model_sampler_post_cfg_function(lambda args: seen.append(args["denoised"].clone()) or args["denoised"])
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 1)
    guider.sample(start, torch.zeros_like(start), comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True)
    return seen[0]


@pytest.mark.parametrize("family", ["unet", "flux"])
@pytest.mark.parametrize("use_previous_step", [False, True])
def test_no_doubt_is_no_node(family, use_previous_step):
    model = on(tiny.model(family), family, guides.always(*SURE), use_previous_step=use_previous_step)
    seen = probes.count_evaluations(model)
    assert torch.equal(tiny.sample(model, family), tiny.sample(tiny.model(family), family))
    assert seen.chunks == [2] * 4


def test_little_doubt_costs_nothing():
    said = (0.985, 0.015, 0.0, 0.0)
    for threshold, extra in ((0.02, 0), (0.01, 4)):
        model = on(tiny.model("unet"), "unet", guides.always(*said), threshold=threshold)
        seen = probes.count_evaluations(model)
        tiny.sample(model, "unet")
        assert seen.total == 8 + extra


def test_little_doubt_beside_much():
    """An image below the threshold is left alone, also where another one is not."""
    model = on(tiny.model("unet"), "unet", guides.each(DOG, (0.985, 0.015, 0.0, 0.0)), threshold=0.02)
    found, plain = first(model, "unet", batch=2), first(tiny.model("unet"), "unet", batch=2)
    assert torch.equal(found[1], plain[1])
    assert probes.distance(found[:1], plain[:1]) > 1e-3


def test_lag_asks_about_the_reference_that_it_has():
    """How likely the candidate of the step before is now, not the one that is most confusing now."""
    was, now = (0.5, 0.4, 0.1, 0.0), (0.5, 0.1, 0.4, 0.0)
    says = guides.by_step(was, now)
    model = on(tiny.model("unet"), "unet", says, measure="max", use_previous_step=True, scale=2.0)
    shown = probes.record_predictions(model)
    tiny.sample(model, "unet", steps=2, cfg=1.0)
    step = shown.steps[1]
    dog = _at("unet", step, tiny.conditioning("unet", 31))
    assert probes.distance(step["denoised"], step["cond_denoised"] + 0.2 * (step["cond_denoised"] - dog)) < 1e-4


@pytest.mark.parametrize("family", ["unet", "flux"])
def test_evaluations(family):
    """Confused in two of four steps."""
    says = guides.by_step(DOG, SURE, OWL, SURE)
    model = on(tiny.model(family), family, says)
    seen = probes.count_evaluations(model)
    tiny.sample(model, family)
    assert seen.chunks == [2, 1, 2, 2, 1, 2]
    assert says.calls == 4


@pytest.mark.parametrize("family", ["unet", "flux"])
def test_in_the_place_of_the_negative(family):
    """CFG with the candidate as its negative; at the cost of CFG."""
    model = on(tiny.model(family), family, guides.always(*DOG), combination=SWAP)
    seen = probes.count_evaluations(model)
    wanted = tiny.sample(tiny.model(family), family, negative=tiny.conditioning(family, 31))
    assert probes.distance(tiny.sample(model, family), wanted) < 1e-4
    assert seen.total == 8
    sure = tiny.sample(on(tiny.model(family), family, guides.always(*SURE), combination=SWAP), family)
    assert probes.distance(sure, tiny.sample(tiny.model(family), family)) < 1e-4


@pytest.mark.parametrize("tokens", [(7, 7, 7, 7), (7, 7, 7, 5)])
@pytest.mark.parametrize("combination", [ADD, SWAP])
def test_lag(combination, tokens):
    """In each step the reference of the step before, in the same network call; nothing in the first."""
    family = "flux"
    rows = (OWL, DOG, SURE, DOG)
    # With how much is said now of the reference found before.
    late = {ADD: (None, ("owl", 0.4), ("dog", 0.0), None), SWAP: (None, "owl", "dog", None)}[combination]
    says = guides.by_step(*rows)
    model = on(
        tiny.model(family), family, says, combination=combination, use_previous_step=True, scale=2.0, tokens=tokens
    )
    seen, shown = probes.count_evaluations(model), probes.record_predictions(model)
    tiny.sample(model, family)
    assert says.calls == 4
    for step, reference in zip(shown.steps, late):
        cond, uncond = step["cond_denoised"], step["uncond_denoised"]
        word, strength = (reference, 0.0) if combination == SWAP else reference or (None, 0.0)
        if word is not None:
            position = guides.WORDS.index(word)
            prompt = tiny.conditioning(family, guides.SEEDS[position], tokens[position])
            other = _at(family, step, prompt)
        if combination == SWAP and word is not None:
            assert probes.distance(uncond, other) < 1e-4
        wanted = uncond + 4 * (cond - uncond) + (2 * strength * (cond - other) if strength else 0)
        assert probes.distance(step["denoised"], wanted) < 1e-4
    assert seen.total == {ADD: 2 + 3 + 3 + 2, SWAP: 8}[combination]
    assert len(seen.chunks) == 4 + (tokens[3] != 7)  # the host cannot put prompts of different lengths into one call


@pytest.mark.parametrize("combination", [ADD, SWAP])
def test_lag_ends_with_the_range(combination):
    """Although the last step inside has found a reference: no evaluation, and the negative again."""
    model = on(
        tiny.model("flux"),
        "flux",
        guides.always(*DOG),
        combination=combination,
        use_previous_step=True,
        end_percent=0.5,
    )
    seen, shown = probes.count_evaluations(model), probes.record_predictions(model)
    tiny.sample(model, "flux", steps=6)
    halfway = model.get_model_object("model_sampling").percent_to_sigma(0.5)
    outside = [probes.at_or_below(step, halfway) for step in shown.steps]
    assert 2 <= sum(outside) <= 4
    inside = 2 if combination == SWAP else 3
    assert seen.chunks == [2] + [2 if late else inside for late in outside[1:]]
    for step, late in zip(shown.steps, outside):
        if late:
            negative = _at("flux", step, tiny.conditioning("flux", 22))
            assert probes.distance(step["uncond_denoised"], negative) < 1e-4
            wanted = negative + 4 * (step["cond_denoised"] - negative)
            assert probes.distance(step["denoised"], wanted) < 1e-4


def _at(family, step, prompt, model=None):
    """The prediction for a prompt at a recorded x and sigma."""
    found = []

    class Ask(comfy.samplers.Sampler):
        def sample(self, guider, sigmas, extra_args, callback, noise, *args, **kwargs):
            found.append(guider(step["input"], step["sigma"], **extra_args))
            return noise

    guider = comfy.samplers.CFGGuider(model or tiny.model(family))
    guider.set_conds(prompt, prompt)
    guider.set_cfg(1.0)
    zeros = torch.zeros_like(step["input"])
    guider.sample(zeros, zeros, Ask(), torch.tensor([1.0, 0.0]), disable_pbar=True)
    return found[0]


@pytest.mark.parametrize("interval", [2, 3])
def test_the_classifier_is_asked_every_n_steps(interval):
    says = guides.Says(lambda call, images: torch.tensor([DOG if call == 0 else OWL]).log())
    model = on(tiny.model("unet"), "unet", says, classifier_interval=interval, scale=2.0)
    shown = probes.record_predictions(model)
    tiny.sample(model, "unet", steps=4, cfg=1.0)
    assert says.calls == 2
    for i, step in enumerate(shown.steps):
        seed, strength = (31, 0.4) if i < interval else (33, 0.8)
        other = _at("unet", step, tiny.conditioning("unet", seed))
        wanted = step["cond_denoised"] + 2 * strength * (step["cond_denoised"] - other)
        assert probes.distance(step["denoised"], wanted) < 1e-4


@pytest.mark.parametrize("family", ["unet", "flux"])
@pytest.mark.parametrize(("row", "seed"), [(DOG, 31), (SURE, 11)])
def test_autoguidance(family, row, seed):
    """Away from a worse model that is shown the candidate; the positive, where there is no doubt."""
    worse = tiny.worse(tiny.model(family))
    weak = predicted(family, seed, model=worse)
    positive = predicted(family, 11)
    settings = {"combination": AUTOGUIDANCE, "weak_model": tiny.worse(tiny.model(family)), "scale": 1.5}
    model = on(tiny.model(family), family, guides.always(*row), **settings)
    seen = probes.count_evaluations(model)
    found = first(model, family, cfg=1.0)
    assert probes.distance(found, positive + 1.5 * (positive - weak)) < 1e-4
    assert seen.total == 1
    same = on(tiny.model(family), family, guides.always(*SURE), **{**settings, "weak_model": tiny.model(family)})
    assert probes.distance(first(same, family, cfg=1.0), positive) < 1e-5


def test_autoguidance_without_doubt_comes_back_to_the_positive():
    worse = tiny.worse(tiny.model("unet"))
    settings = {"combination": AUTOGUIDANCE, "weak_model": worse, "scale": 1.5}
    model = on(tiny.model("unet"), "unet", guides.by_step(DOG, SURE), **settings)
    shown = probes.record_predictions(model)
    tiny.sample(model, "unet", steps=2, cfg=1.0)
    step = shown.steps[1]
    weak = _at("unet", step, tiny.conditioning("unet", 11), tiny.worse(tiny.model("unet")))
    assert probes.distance(step["denoised"], step["cond_denoised"] + 1.5 * (step["cond_denoised"] - weak)) < 1e-4


def test_autoguidance_of_each_image():
    settings = {"combination": AUTOGUIDANCE, "weak_model": tiny.worse(tiny.model("unet"))}
    together = first(on(tiny.model("unet"), "unet", guides.each(DOG, SURE, OWL), **settings), "unet", batch=3)
    for b, row in enumerate((DOG, SURE, OWL)):
        single = on(tiny.model("unet"), "unet", guides.always(*row), **settings)
        assert probes.distance(together[b : b + 1], _first_of(single, "unet", tiny.noise("unet", 3)[b : b + 1])) < 1e-4


def test_what_else_belongs_to_a_candidate():
    """One of them with a mask: it is not joined with the other, and is as in a run by itself."""
    mask = torch.zeros(1, 64, 64)
    mask[:, :, :32] = 1
    plain = guides.candidates("unet")
    masked = list(plain.conditionings)
    [[tokens, options]] = masked[1]
    masked[1] = [[tokens, {**options, "mask": mask, "mask_strength": 1.0, "set_area_to_bounds": False}]]
    candidates = type(plain)(plain.labels, tuple(masked))

    def with_rows(*rows):
        given = {"classifier": guides.each(*rows), "candidates": candidates}
        return run_node(GFCG, model=tiny.model("unet"), **given)

    model = with_rows(DOG, OWL)
    seen = probes.count_evaluations(model)
    together = first(model, "unet", batch=2)
    assert seen.total == 2 + 2
    for b, row in enumerate((DOG, OWL)):
        assert (
            probes.distance(together[b : b + 1], _first_of(with_rows(row), "unet", tiny.noise("unet", 2)[b : b + 1]))
            < 1e-4
        )
    unmasked = first(on(tiny.model("unet"), "unet", guides.each(DOG, OWL)), "unet", batch=2)
    assert probes.distance(together[:1], unmasked[:1]) > 1e-3


def test_areas_of_the_positive():
    """The host copies them into every other prompt, so that prompts do not fit into one."""
    positive = [[c, {**o, "area": (4, 8, 0, 0), "strength": 1.0}] for c, o in tiny.conditioning("unet", 11)]
    together = first(on(tiny.model("unet"), "unet", guides.each(DOG, OWL)), "unet", batch=2, positive=positive)
    for b, row in enumerate((DOG, OWL)):
        single = on(tiny.model("unet"), "unet", guides.always(*row))
        alone = _first_of(single, "unet", tiny.noise("unet", 2)[b : b + 1], positive)
        assert probes.distance(together[b : b + 1], alone) < 1e-4


def test_caches_can_tell_joined_prompts_apart():
    """By uuid, as the host's EasyCache does: the same one for the same choice only."""
    choices = [(DOG, OWL), (OWL, DOG), (DOG, OWL), (DOG, DOG)]
    says = guides.Says(lambda call, images: torch.tensor(choices[call]).log())
    model, seen = on(tiny.model("unet"), "unet", says), []

    def look(executor, x, t, *args, **kwargs):
        options = kwargs["transformer_options"] if "transformer_options" in kwargs else args[3]
        seen.append(tuple(options["uuids"]))
        return executor(x, t, *args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "look", look)
    tiny.sample(model, "unet", steps=4, batch=2)
    joined = seen[1::2]
    assert [len(uuids) for uuids in seen] == [2, 1] * 4
    assert joined[0] == joined[2]
    assert len({*joined}) == 3
    assert not {uuid for uuids in joined for uuid in uuids} & {*seen[0]}


@pytest.mark.parametrize("family", ["unet", "sd3", "flux"])
def test_control_of_the_positive_stays_with_it(family):
    """As the host has it: a ControlNet that is not for the negative is not for a candidate either."""
    positive = tiny.controlled(tiny.conditioning(family, 11), family)
    dog, controlled = predicted(family, 31), first(tiny.model(family), family, cfg=1.0, positive=positive)
    model = on(tiny.model(family), family, guides.always(*DOG), scale=2.0)
    found = first(model, family, cfg=1.0, positive=positive)
    assert probes.distance(found, controlled + 0.8 * (controlled - dog)) < 1e-4


def test_images_that_cannot_be_seen():
    """An image of NaN is left alone, and says so to nobody but the classifier."""
    says = guides.Says(lambda call, images: torch.full((len(images), 4), torch.nan))
    model = on(tiny.model("unet"), "unet", says)
    assert torch.equal(tiny.sample(model, "unet"), tiny.sample(tiny.model("unet"), "unet"))


def test_what_is_said_of_a_run(caplog):
    caplog.set_level("INFO")
    tiny.sample(on(tiny.model("unet"), "unet", guides.by_step(DOG, SURE, DOG, OWL)), "unet")
    assert "led away from dog 2, owl 1 (images and steps); 3 more evaluations, classifier asked 4 times" in caplog.text


@pytest.mark.parametrize(
    ("combination", "tokens", "count"),
    [(ADD, (7, 7, 7, 7), 1), (ADD, (7, 7, 7, 5), 2), (SWAP, (7, 7, 7, 7), 0), (SWAP, (7, 7, 7, 5), 2)],
)
def test_evaluations_are_counted_as_they_are(combination, tokens, count, caplog):
    caplog.set_level("INFO")
    family, rows = "flux", (DOG, SURE, OWL)
    model = on(tiny.model(family), family, guides.each(*rows), combination=combination, tokens=tokens)
    seen = probes.count_evaluations(model)
    tiny.sample(model, family, steps=1, batch=3)
    assert seen.total == 2 + count
    assert f"; {count} more evaluations" in caplog.text


def test_the_classifier_is_given_images():
    """What the decoder makes of the positive's prediction, RGB in 0..1."""
    shown = []
    says = guides.Says(lambda call, images: shown.append(images) or torch.tensor([SURE]).log())
    model = on(tiny.model("flux"), "flux", says)
    tiny.sample(model, "flux", steps=1)
    [image] = shown
    cond = predicted("flux", 11)
    latent_format = model.get_model_object("latent_format")
    rgb = torch.einsum("bchw,cr->brhw", cond, torch.tensor(latent_format.latent_rgb_factors))
    rgb = rgb + torch.tensor(latent_format.latent_rgb_factors_bias).reshape(1, 3, 1, 1)
    assert torch.allclose(image, ((rgb + 1) / 2).clamp(0, 1), atol=1e-4)


class Vae:
    """Shows three channels of the latent, as the host's VAE would give them."""

    patcher = None

    def __init__(self):
        self.seen = []
        cpu = torch.device("cpu")
        self.patcher = guides.ModelPatcher(torch.nn.Linear(1, 1), load_device=cpu, offload_device=cpu)

    def decode(self, latent):
        self.seen.append(latent)
        return latent.movedim(1, -1)[..., :3].sigmoid()


@pytest.mark.parametrize("family", ["unet", "wan"])
def test_a_vae_decodes(family):
    """In a VAE's units; of a video the middle frame."""
    shown = []
    says = guides.Says(lambda call, images: shown.append(images) or torch.tensor([SURE]).log())
    vae, model = Vae(), tiny.model(family)
    tiny.sample(on(model, family, says, vae=vae), family, steps=1)
    latent = model.model.process_latent_out(predicted(family, 11))
    if family == "wan":
        middle = latent.shape[2] // 2
        latent = latent[:, :, middle : middle + 1]
    assert probes.distance(vae.seen[0], latent) < 1e-5
    assert shown[0].shape == (1, 3, *latent.shape[-2:])


def test_decoding_may_take_the_network_out_of_memory():
    """Where the host makes room for a VAE. Its patches are taken out of the weights then."""

    class Greedy(Vae):
        def decode(self, latent):
            comfy.model_management.unload_all_models()
            return super().decode(latent)

    def sampled(vae):
        model = on(tiny.model("unet"), "unet", guides.always(*DOG), vae=vae)
        name = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v.weight"
        model.add_patches({name: ("diff", (torch.ones(64, 16) * 0.2,))})
        return tiny.sample(model, "unet")

    assert torch.equal(sampled(Greedy()), sampled(Vae()))


def test_exact_inversion():
    """A function of the step, without lag; with it, a memory."""
    family = "unet"
    model = on(tiny.model(family), family, guides.classifier(), scale=2.0)
    state = inverted(model, family, guider=exact_guider(model, family))
    assert probes.distance(sampled(model, family, state), tiny.noise(family, seed=40)) <= 1e-9
    model = on(tiny.model(family), family, guides.classifier(), use_previous_step=True)
    with pytest.raises(ValueError, match="remembers earlier steps"):
        inverted(model, family, guider=exact_guider(model, family))


# Bad input


def test_one_candidate():
    with pytest.raises(ValueError, match="There is one candidate, 'cat'"):
        on(tiny.model("unet"), "unet", guides.always(1.0), words=("cat",))


def test_an_unknown_label():
    classifier = guides.classifier()
    classifier = type(classifier)(
        "animals", classifier.patcher, ("cat", "dog", "fox", "hen"), 32, (0.5,) * 3, (0.5,) * 3
    )
    with pytest.raises(ValueError, match="animals has no class 'owl'. It has 4: cat, dog, fox, hen"):
        on(tiny.model("unet"), "unet", classifier)


def test_no_worse_model():
    with pytest.raises(ValueError, match="nothing is connected to weak_model"):
        on(tiny.model("unet"), "unet", guides.always(*DOG), combination=AUTOGUIDANCE)


def test_no_way_to_see(monkeypatch):
    model = on(tiny.model("unet"), "unet", guides.always(*DOG))
    monkeypatch.setattr(type(model.get_model_object("latent_format")), "latent_rgb_factors", None, raising=False)
    monkeypatch.setattr(model.get_model_object("latent_format"), "latent_rgb_factors", None, raising=False)
    with pytest.raises(ValueError, match="no VAE is connected, and ComfyUI has no colours"):
        tiny.sample(model, "unet")


@pytest.mark.parametrize("combination", [ADD, SWAP, AUTOGUIDANCE])
def test_candidates_of_another_models_text_encoder(combination):
    """Told before the first step, and not by the network."""
    model = tiny.model("unet")
    given = {"weak_model": tiny.worse(model)} if combination == AUTOGUIDANCE else {}
    of_another = guides.candidates("flux")
    applied = run_node(
        GFCG, model=model, classifier=guides.classifier(), candidates=of_another, combination=combination, **given
    )
    with pytest.raises(ValueError, match="has 12 channels per token, and the positive prompt 16"):
        tiny.sample(applied, "unet")
