"""Templates for the models that people have: what to do about burnt colours, hands, prompts that are not followed.

Settings are those published for the model; where there are none, the note says so.
"""

from __future__ import annotations

from . import models
from .graph import GREEN, RED, Graph, Node, Output
from .models import Loaded
from .template import Template, in_app, note, prompts, save

BYPASS = "To compare, bypass the purple node (Ctrl+B) and queue again: the seed stays."
UNREAD = "Negative prompt (not used: cfg 1)"
SDXL_NEGATIVE = "blurry, low quality, watermark, text"
HANDS = (
    "photo of an old violin maker at his workbench, both hands holding a half-finished violin, wood shavings, tools on "
    "the wall, window light"
)
WAN_NEGATIVE = (
    "overexposed, static, blurred details, subtitles, painting, still image, grey, worst quality, low quality, "
    "compression artefacts, badly drawn hands, deformed, extra fingers, fused limbs, cluttered background"
)


def image(graph: Graph, side: int, batch: int = 1) -> Output:
    """An empty latent: four channels for SDXL and SD1.5, sixteen for the others."""
    four = any(file in (models.SDXL_BASE, models.SD15_BASE) for node in graph.nodes for file in node.files)
    kind = "EmptyLatentImage" if four else "EmptySD3LatentImage"
    return graph.add(kind, width=side, height=side, batch_size=batch)[0]


def sampler(
    graph: Graph,
    model: Output,
    positive: Output,
    negative: Output,
    latent: Output,
    steps: int,
    cfg: float,
    sampler_name: str = "euler",
    scheduler: str = "simple",
    seed: int = 1,
) -> Node:
    settings = {
        "seed": seed,
        "steps": steps,
        "cfg": cfg,
        "sampler_name": sampler_name,
        "scheduler": scheduler,
        "denoise": 1.0,
    }
    inputs = {"model": model, "positive": positive, "negative": negative, "latent_image": latent}
    return graph.add("KSampler", **settings, **inputs)


# Burnt colours -------------------------------------------------------------------------------------------------------


def apg_sdxl(g: Graph) -> None:
    m = models.sdxl(g)
    positive, negative = prompts(
        g,
        m.clip,
        "portrait of a woman in a bright red silk coat at a flower market, sunlight, film photo",
        SDXL_NEGATIVE,
    )
    latent = image(g, 1024)
    apg = g.add("GuidekitAPG", model=m.model)
    k = sampler(g, apg[0], positive[0], negative[0], latent, 30, 12.0, "euler", "normal", 3)
    save(g, k[0], m.vae, "apg_sdxl")
    in_app(g, (positive, "text"), (k, "seed"), (k, "cfg"), (apg, "eta"), (apg, "momentum"))
    note(
        g,
        "CFG 12 makes SDXL follow the prompt, and burns its colours. APG removes the part of the guidance that only "
        "amplifies the image.",
        f"the red, the skin and the highlights. {BYPASS}",
        "cfg 7 to 15; `eta` 0.5 for half of the plain effect, 1 with `momentum` 0 for plain CFG; a `momentum` nearer "
        "to 0 for stronger guidance.",
        "no extra evaluations of the network.",
    )


def apg_qwen_image(g: Graph) -> None:
    m = models.qwen_image(g)
    positive, negative = prompts(
        g,
        m.clip,
        'a shop window at night, a neon sign that says "OPEN LATE", wet street, an orange cat on the sill',
        " ",
    )
    latent = image(g, 1328)
    apg = g.add("GuidekitAPG", model=m.model)
    k = sampler(g, apg[0], positive[0], negative[0], latent, 20, 6.0, seed=3)
    save(g, k[0], m.vae, "apg_qwen_image")
    in_app(g, (positive, "text"), (k, "seed"), (k, "cfg"), (apg, "eta"), (apg, "momentum"))
    note(
        g,
        "A true CFG of 6 helps Qwen-Image with text and with many objects at once, but makes its colours too strong. "
        "APG removes the part of the guidance that only amplifies the image.",
        f"the neon, the cat's fur, and plain areas. {BYPASS}",
        "cfg 4 to 8; `eta` 0.5. There are no published settings for Qwen-Image: these are the paper's for SDXL.",
        "no extra evaluations of the network.",
    )


# Structure -----------------------------------------------------------------------------------------------------------


def _structure(g: Graph, m: Loaded, kind: str, name: str, latent: int, settings: dict, **inputs: object) -> Node:
    positive, negative = prompts(g, m.clip, HANDS, SDXL_NEGATIVE)
    empty = image(g, latent)
    technique = g.add(kind, model=m.model, **inputs)
    k = sampler(g, technique[0], positive[0], negative[0], empty, **settings)
    save(g, k[0], m.vae, name)
    in_app(g, (positive, "text"), (k, "seed"), (technique, "scale"), (technique, "blocks"))
    return technique


def pag_sdxl(g: Graph) -> None:
    settings = {"steps": 28, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal"}
    _structure(g, models.sdxl(g), "GuidekitPAG", "pag_sdxl", 1024, settings)
    note(
        g,
        "PAG evaluates SDXL a second time with the attention of its middle block switched off, so that structure falls "
        "apart, and guides away from that prediction.",
        f"the hands, the violin's outline, straight lines in the background. {BYPASS}",
        "`scale` 2 to 5 with cfg 4; cfg 1 with `scale` 4, for PAG alone; `blocks` output 3 for a stronger and "
        "different effect.",
        "about 1.3 times the time: only the blocks from the middle on are computed again.",
    )


def seg_sdxl(g: Graph) -> None:
    settings = {"steps": 28, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal"}
    _structure(g, models.sdxl(g), "GuidekitSEG", "seg_sdxl", 1024, settings)
    note(
        g,
        "SEG is an adjustable PAG: the attention of SDXL's middle block is blurred instead of switched off, and "
        "guidance leads away from the blurred prediction.",
        f"the hands and the tools. Compared with PAG, colours and contrast stay nearer to plain CFG. {BYPASS}",
        "`blur` 2, 10, 100 (0 is off); `scale` 2 to 5; cfg 1 with `scale` 3, for SEG alone.",
        "about 1.3 times the time: only the blocks from the middle on are computed again.",
    )


def slg_sd35(g: Graph) -> None:
    settings = {"steps": 28, "cfg": 4.0, "sampler_name": "euler", "scheduler": "sgm_uniform"}
    inputs = {"blocks": "7-9", "start_percent": 0.01, "end_percent": 0.2}
    _structure(g, models.sd35(g), "GuidekitSLG", "slg_sd35", 1024, settings, **inputs)
    note(
        g,
        "SLG evaluates SD3.5 medium a second time without its blocks 7 to 9, so that hands and bodies go wrong, and "
        "guides away from that prediction in the first fifth of the steps. Settings: Stability AI's for this model.",
        f"fingers, arms, and how the violin is held. {BYPASS}",
        "`scale` 2 to 4; `end_percent` 0.4; other `blocks`, such as 6-10.",
        "half as much again in the steps in which it acts: about 1.1 times the time.",
    )


def pag_flux_dev(g: Graph) -> None:
    m = models.flux(g, models.FLUX_DEV)
    positive, negative = prompts(g, m.clip, HANDS, title=UNREAD)
    guided = g.add("FluxGuidance", conditioning=positive[0], guidance=3.5)
    latent = image(g, 1024)
    pag = g.add("GuidekitPAG", model=m.model, scale=1.0)
    k = sampler(g, pag[0], guided[0], negative[0], latent, 20, 1.0)
    save(g, k[0], m.vae, "pag_flux_dev")
    in_app(g, (positive, "text"), (k, "seed"), (pag, "scale"), (pag, "blocks"))
    note(
        g,
        "Flux dev has no CFG to raise. PAG evaluates it a second time with the attention of one block switched off, so "
        "that structure falls apart, and guides away from that prediction.",
        f"the hands and the violin's strings. {BYPASS}",
        "`scale` 0.5 to 2; `blocks` double 3 or single 10-12. There are no published settings for Flux: these are "
        "ours, as a starting point.",
        "up to twice the time; the later the first block, the less.",
    )


# A negative prompt at cfg 1 ------------------------------------------------------------------------------------------


def _nag(
    g: Graph, m: Loaded, name: str, text: str, unwanted: str, steps: int, guidance: float = 0.0, **how: str
) -> None:
    positive, negative = prompts(g, m.clip, text, unwanted)
    wanted = g.add("FluxGuidance", conditioning=positive[0], guidance=guidance) if guidance else positive
    latent = image(g, 1024)
    nag = g.add("GuidekitNASA", model=m.model, negative=negative[0])
    k = sampler(g, nag[0], wanted[0], negative[0], latent, steps, 1.0, **how)
    save(g, k[0], m.vae, name)
    in_app(g, (positive, "text"), (negative, "text"), (k, "seed"), (nag, "nag_scale"), (nag, "nag_alpha"))


_NAG = (
    "At cfg 1 the sampler ignores the negative prompt. NAG puts it into the attention: what the image takes from the "
    "prompt is moved away from what it would take from the negative prompt."
)
_NAG_TRY = (
    "another negative prompt, in a few plain words; `nag_scale` 3 to 8; `nag_alpha` 0.15 to 0.5 for how much it counts."
)


def nag_flux_dev(g: Graph) -> None:
    text = "a street in a small Italian town in the morning, photo"
    _nag(g, models.flux(g, models.FLUX_DEV), "nag_flux_dev", text, "cars, people", 20, 3.5)
    note(
        g,
        _NAG,
        f"the street: no cars, no people. {BYPASS}",
        _NAG_TRY,
        "about 1.25 times the time at 1024 x 1024; no CFG.",
    )


def nag_flux_schnell(g: Graph) -> None:
    text = "a street in a small Italian town in the morning, photo"
    _nag(g, models.flux(g, models.FLUX_SCHNELL), "nag_flux_schnell", text, "cars, people", 4)
    note(
        g,
        _NAG,
        f"the street: no cars, no people. {BYPASS}",
        _NAG_TRY,
        "about 1.25 times the time at 1024 x 1024; no CFG.",
    )


def nag_z_image_turbo(g: Graph) -> None:
    text = "a street in a small Italian town in the morning, photo"
    how = {"sampler_name": "res_multistep", "scheduler": "simple"}
    _nag(g, models.z_image_turbo(g), "nag_z_image_turbo", text, "cars, people", 8, **how)
    attempt = f"{_NAG_TRY} There are no published settings for Z-Image: these are the paper's for Flux."
    note(g, _NAG, f"the street: no cars, no people. {BYPASS}", attempt, "a quarter to a half more time; no CFG.")


def nag_wan(g: Graph) -> None:
    m = models.wan22(g, in_4_steps=True)
    positive, negative = prompts(
        g,
        m.clip,
        "a fox trots along a snowy forest path towards the camera, morning light, tracking shot",
        WAN_NEGATIVE,
        column=1,
    )
    latent = g.add("EmptyHunyuanLatentVideo", width=640, height=640, length=81, batch_size=1, column=1)[0]
    high, low = (g.add("GuidekitNASA", model=model, negative=negative[0]) for model in (m.high, m.low))
    first, _ = _two_stages(g, high[0], low[0], positive[0], negative[0], latent, m.vae, 4, 1.0, "nag_wan")
    in_app(g, (positive, "text"), (negative, "text"), (first, "noise_seed"), (high, "nag_scale"), (high, "nag_alpha"))
    note(
        g,
        "With the 4-step LoRAs Wan runs at cfg 1, and the negative prompt that it should be used with has no effect. "
        "NAG brings it back, inside the attention to the text.",
        "contrast, motion and hands. To compare, bypass both purple nodes (Ctrl+B) and queue again: the seed stays.",
        'a negative prompt for this video alone ("static, slow motion"); `nag_scale` 5 to 11 and `nag_alpha` 0.25 to '
        "0.5, in both nodes.",
        "a few percent more time; no CFG, which would double it.",
    )


def _two_stages(
    g: Graph,
    high: Output,
    low: Output,
    positive: Output,
    negative: Output,
    latent: Output,
    vae: Output,
    steps: int,
    cfg: float,
    name: str,
) -> tuple[Node, Node]:
    """Wan 2.2: the first half of the steps by one network, the rest by the other."""
    shared = {"steps": steps, "cfg": cfg, "sampler_name": "euler", "scheduler": "simple"}
    shared |= {"positive": positive, "negative": negative}
    first = {"add_noise": "enable", "noise_seed": 1, "start_at_step": 0, "end_at_step": steps // 2}
    second = {"add_noise": "disable", "noise_seed": 0, "start_at_step": steps // 2, "end_at_step": 10000}
    kept = {"return_with_leftover_noise": "enable"}
    begun = g.add(
        "KSamplerAdvanced",
        "KSampler (high noise)",
        model=high,
        latent_image=latent,
        column=3,
        **shared,
        **first,
        **kept,
    )
    kept = {"return_with_leftover_noise": "disable"}
    done = g.add(
        "KSamplerAdvanced",
        "KSampler (low noise)",
        model=low,
        latent_image=begun[0],
        column=3,
        **shared,
        **second,
        **kept,
    )
    frames = g.add("VAEDecode", samples=done[0], vae=vae)
    # The one of core's video-saving nodes that is the same in all versions.
    settings = {"fps": 16.0, "lossless": False, "quality": 90, "method": "default"}
    g.add("SaveAnimatedWEBP", images=frames[0], filename_prefix=f"guidekit/{name}", **settings)
    return begun, done


# More variety --------------------------------------------------------------------------------------------------------

_VARIETY = "portrait of a chef in a restaurant kitchen, photo"


def _variety(g: Graph, m: Loaded, name: str, side: int, steps: int, **how: str) -> None:
    positive, negative = prompts(g, m.clip, _VARIETY, title=UNREAD)
    latent = image(g, side, 4)
    merging = g.add("GuidekitNegToMe", model=m.model, reference="all other images")
    k = sampler(g, merging[0], positive[0], negative[0], latent, steps, 1.0, **how)
    save(g, k[0], m.vae, name)
    in_app(g, (positive, "text"), (k, "seed"), (merging, "alpha"), (merging, "threshold"))
    note(
        g,
        "Distilled models make nearly the same image for every seed. In the first steps, NegToMe pushes each part of "
        "an image away from the most similar part of the other images of the batch.",
        f"faces, clothes and the camera position in the four images. {BYPASS}",
        "`alpha` 1.5 for more; a lower `threshold` for more; `reference` first image, which then stays as it is.",
        "a few percent more time. The batch needs at least two images.",
    )


def negtome_z_image_turbo(g: Graph) -> None:
    how = {"sampler_name": "res_multistep", "scheduler": "simple"}
    _variety(g, models.z_image_turbo(g), "negtome_z_image_turbo", 1024, 8, **how)


def negtome_qwen_lightning(g: Graph) -> None:
    _variety(g, models.qwen_image(g, lightning=True), "negtome_qwen_lightning", 1328, 8)


def negtome_reference_z_image_turbo(g: Graph) -> None:
    m = models.z_image_turbo(g)
    positive, negative = prompts(g, m.clip, _VARIETY, title=UNREAD)
    latent = image(g, 1024)
    how = {"sampler_name": "res_multistep", "scheduler": "simple"}
    with g.row("An image"):
        first = sampler(g, m.model, positive[0], negative[0], latent, 8, 1.0, seed=1, **how)
        save(g, first[0], m.vae, "1_image")
    with g.row("Another one, unlike it"):
        merging = g.add("GuidekitNegToMe", model=m.model, reference="reference latent", latent=first[0])
        second = sampler(g, merging[0], positive[0], negative[0], latent, 8, 1.0, seed=2, **how)
        save(g, second[0], m.vae, "2_unlike_it")
    in_app(g, (positive, "text"), (first, "seed"), (second, "seed"), (merging, "alpha"), (merging, "threshold"))
    note(
        g,
        "One image at a time: the second image is pushed, in the first steps, away from the first one, which goes "
        "through the network beside it.",
        "how little the two have in common. To compare, bypass the purple node (Ctrl+B) and queue again.",
        "a chain: this image's latent as the reference of the next one; an image of your own through VAE Encode; "
        "`alpha` 1.5.",
        "in the steps in which it acts every prediction costs two.",
    )


# Less time -----------------------------------------------------------------------------------------------------------


def _fast(g: Graph, model: Output, **interval: object) -> tuple[Node, Node]:
    limited = g.add("GuidekitGuidanceInterval", model=model, **interval)
    return limited, g.add("GuidekitAdaptiveGuidance", model=limited[0])


_FAST = (
    "CFG evaluates the network twice in every step. The interval skips the negative prompt at the noise levels where "
    "it does little; Adaptive Guidance skips it from the step on in which both predictions agree."
)


def fast_sdxl(g: Graph) -> None:
    m = models.sdxl(g)
    positive, negative = prompts(
        g, m.clip, "a lighthouse on a cliff in a storm, waves breaking, dramatic sky, oil painting", SDXL_NEGATIVE
    )
    latent = image(g, 1024)
    _, adaptive = _fast(g, m.model)
    k = sampler(g, adaptive[0], positive[0], negative[0], latent, 30, 7.0, "dpmpp_2m", "karras")
    save(g, k[0], m.vae, "fast_sdxl")
    in_app(g, (positive, "text"), (k, "seed"), (k, "cfg"), (adaptive, "threshold"), (adaptive, "space"))
    note(
        g,
        _FAST,
        "the time, and at what the nodes say about the run; then at whether you see a difference. To compare, bypass "
        "the purple nodes (Ctrl+B) and queue again: the seed stays.",
        "a higher cfg, which the interval makes possible without loss of variety (the paper uses 16); `threshold` 0.99 "
        "for more speed, 0.999 for less.",
        "saves a quarter to a third of the evaluations, depending on the prompt.",
    )


# The paper's interval cuts off both ends. In a flow with a shifted schedule the high end is half of the steps, in which
# composition is decided, so only the low end is cut off.
_LOW_END = {"limits": "sigma", "sigma_high": 1.0, "sigma_low": 0.2188}


def _fast_flow(g: Graph, m: Loaded, name: str, text: str, unwanted: str, side: int, settings: dict) -> None:
    positive, negative = prompts(g, m.clip, text, unwanted)
    latent = image(g, side)
    _, adaptive = _fast(g, m.model, **_LOW_END)
    k = sampler(g, adaptive[0], positive[0], negative[0], latent, **settings)
    save(g, k[0], m.vae, name)
    in_app(g, (positive, "text"), (k, "seed"), (k, "cfg"), (adaptive, "threshold"), (adaptive, "space"))
    note(
        g,
        _FAST,
        "the time, and at what the nodes say about the run; then at whether you see a difference. To compare, bypass "
        "the purple nodes (Ctrl+B) and queue again: the seed stays.",
        "`threshold` 0.99 for more speed, 0.999 for less; `sigma_low` 0.4. There are no published settings for this "
        "model: these are ours, as a starting point.",
        "saves up to half of the evaluations after the step in which the threshold is crossed; the node says which "
        "one.",
    )


def fast_qwen_image(g: Graph) -> None:
    text = 'a poster of a jazz festival that says "BLUE HOUR", a saxophone made of waves, flat colours'
    settings = {"steps": 20, "cfg": 4.0}
    _fast_flow(g, models.qwen_image(g), "fast_qwen_image", text, " ", 1328, settings)


def fast_chroma(g: Graph) -> None:
    text = "a photo of a barn owl on a wooden fence in the evening, every feather sharp, meadow in the background"
    unwanted = "low quality, blurred, unfinished sketch, flat colours, oversaturated"
    settings = {"steps": 26, "cfg": 3.5, "sampler_name": "euler", "scheduler": "beta"}
    _fast_flow(g, models.chroma(g), "fast_chroma", text, unwanted, 1024, settings)


def fast_wan(g: Graph) -> None:
    m = models.wan22(g)
    positive, negative = prompts(
        g,
        m.clip,
        "a potter shapes a bowl on a turning wheel, close-up of the hands, soft daylight",
        WAN_NEGATIVE,
        column=1,
    )
    latent = g.add("EmptyHunyuanLatentVideo", width=640, height=640, length=81, batch_size=1, column=1)[0]
    high = g.add("GuidekitAdaptiveGuidance", "Adaptive Guidance (high noise)", model=m.high, column=2)
    limited = g.add("GuidekitGuidanceInterval", "Guidance Interval (low noise)", model=m.low, column=2, **_LOW_END)
    low = g.add("GuidekitAdaptiveGuidance", "Adaptive Guidance (low noise)", model=limited[0], column=2)
    first, _ = _two_stages(g, high[0], low[0], positive[0], negative[0], latent, m.vae, 20, 3.5, "fast_wan")
    in_app(g, (positive, "text"), (first, "noise_seed"), (high, "threshold"), (low, "threshold"))
    note(
        g,
        f"{_FAST} Wan 2.2 has two networks: each half of the steps has a node of its own.",
        "the time, and at what the nodes say about the run; then at hands and motion. To compare, bypass the purple "
        "nodes (Ctrl+B) and queue again: the seed stays.",
        "`threshold` 0.99 for more speed, 0.999 for less, in each half. There are no published settings for Wan: these "
        "are ours, as a starting point.",
        "saves one of two evaluations in each step after a threshold is crossed: some of the many minutes that a video "
        "takes.",
    )


def cache_qwen_image(g: Graph) -> None:
    m = models.qwen_image(g)
    text = "a wooden sailing boat in a harbour at sunrise, ropes, reflections, a gull on the mast, photo"
    positive, negative = prompts(g, m.clip, text, " ")
    latent = image(g, 1328)
    cached = g.add("GuidekitCFGCache", model=m.model)
    k = sampler(g, cached[0], positive[0], negative[0], latent, 20, 4.0)
    save(g, k[0], m.vae, "cache_qwen_image")
    in_app(g, (positive, "text"), (k, "seed"), (cached, "every"), (cached, "warm_up"), (cached, "limit"))
    note(
        g,
        "CFG evaluates the network twice in every step. After the first third of the run, CFG-Cache evaluates the "
        "negative prompt only in every fifth step, and reuses its last difference from the positive in the others.",
        "the time, and at what the node says about the run; then at whether you see a difference. To compare, bypass "
        "the purple node (Ctrl+B) and queue again: the seed stays.",
        "`every` 2 or 3, or `warm_up` 0.5, if the node reports large misses; `limit` 1 to be careful. Settings: "
        "FasterCache's, which are for videos.",
        "saves 9 of 40 evaluations in 20 steps.",
    )


# Flow models, and detail ---------------------------------------------------------------------------------------------


def cfg_zero_star_sd35(g: Graph) -> None:
    m = models.sd35(g)
    positive, negative = prompts(
        g, m.clip, "a red fox sitting in fresh snow under a pine, breath in the cold air, photo", SDXL_NEGATIVE
    )
    latent = image(g, 1024)
    zero = g.add("GuidekitCFGZeroStar", model=m.model)
    k = sampler(g, zero[0], positive[0], negative[0], latent, 28, 4.0, "euler", "sgm_uniform")
    save(g, k[0], m.vae, "cfg_zero_star_sd35")
    in_app(g, (positive, "text"), (k, "seed"), (k, "cfg"), (zero, "optimized_scale"), (zero, "zero_init"))
    note(
        g,
        "CFG-Zero* is CFG for flow models: the negative's output is scaled to fit the positive's, and the first of 28 "
        "steps, whose prediction is the worst, leaves the noise unchanged.",
        f"the fur, and the anatomy of the fox. {BYPASS}",
        "cfg 3 to 7; `zero_init` 0 for the scale alone, 0.08 for two steps.",
        "no extra evaluations of the network.",
    )


def frequency_guidance_sdxl(g: Graph) -> None:
    m = models.sdxl(g)
    text = "an old map of an island on a desk, a brass compass on it, fine ink lines, candle light, photo"
    positive, negative = prompts(g, m.clip, text, SDXL_NEGATIVE)
    latent = image(g, 1024)
    guided = g.add("GuidekitFrequencyGuidance", model=m.model)
    k = sampler(g, guided[0], positive[0], negative[0], latent, 30, 5.0, "euler", "normal")
    save(g, k[0], m.vae, "frequency_guidance_sdxl")
    in_app(g, (positive, "text"), (k, "seed"), (k, "cfg"), (guided, "high"), (guided, "low"))
    note(
        g,
        "CFG with two scales: the sampler's cfg, 5, for composition and colour, and `high` times as much, 10, for fine "
        "detail. This gives the detail of a high cfg without burnt colours.",
        f"the lines and the metal, and at the colours, which stay the same. {BYPASS}",
        "`high` 1.5 to 4; `low` 0.6 with `high` 2 for variety; cfg 3 to 7.",
        "no extra evaluations of the network.",
    )


# Large images --------------------------------------------------------------------------------------------------------


def _frecas(g: Graph, name: str, sizes: str, tile: int, look: str, cost: str, **plan: object) -> None:
    m = models.sdxl(g)
    text = "a terraced rice valley at sunrise, mist between the hills, small houses, every leaf sharp, photo"
    positive, negative = prompts(g, m.clip, text, SDXL_NEGATIVE)
    planned = g.add("GuidekitFreCaSPlan", column=1, model=m.model, sizes=sizes, **plan)
    euler = g.add("KSamplerSelect", column=1, sampler_name="euler")
    noise, no_noise = g.add("RandomNoise", column=1, noise_seed=1), g.add("DisableNoise", column=1)
    stages = sizes.split(", ")

    def stage(model: Output, noise: Output, sigmas: Output, latent: Output) -> Node:
        inputs = {"model": model, "positive": positive[0], "negative": negative[0]}
        guider = g.add("CFGGuider", cfg=7.5, column=3, **inputs)
        inputs = {"noise": noise, "guider": guider[0], "sampler": euler[0], "sigmas": sigmas, "latent_image": latent}
        return g.add("SamplerCustomAdvanced", column=4, **inputs)

    with g.row(f"At {stages[0]}"):
        done = stage(m.model, noise[0], planned["sigmas"], planned["latent"])
    for size in stages[1:]:
        with g.row(f"At {size}"):
            inputs = {"model": m.model, "plan": planned["plan"], "denoised": done["denoised_output"], "vae": m.vae}
            up = g.add("GuidekitFreCaSUp", column=2, tile=tile, **inputs)
            inputs = {"split": "resize (FreCaS)", "high": 4.667, "size_factor": up["size_factor"]}
            guided = g.add("GuidekitFrequencyGuidance", model=m.model, column=3, **inputs)
            done = stage(guided[0], no_noise[0], up["sigmas"], up["latent"])
            if size == stages[-1]:
                if tile:
                    tiles = {"tile_size": 1024, "overlap": 128, "temporal_size": 64, "temporal_overlap": 8}
                    pixels = g.add("VAEDecodeTiled", column=5, samples=done[0], vae=m.vae, **tiles)
                else:
                    pixels = g.add("VAEDecode", samples=done[0], vae=m.vae)
                g.add("SaveImage", column=5, images=pixels[0], filename_prefix=f"guidekit/{name}")
    in_app(g, (positive, "text"), (noise, "noise_seed"), (planned, "sizes"), (planned, "steps"), (planned, "ends"))
    note(
        g,
        "SDXL repeats things in images larger than it was trained for. FreCaS begins at 1024 and ends that stage "
        "before all noise is gone. The predicted image is enlarged and gets new noise, and a few steps at the larger "
        "size add detail, with stronger guidance for the detail that the smaller image could not hold.",
        look,
        "`gamma` 1 to 3, for how much a larger stage changes; `high` from 25 / cfg to 45 / cfg; other sizes, such as "
        "832x1216, 1664x2432. With CLIPTextEncodeSDXL the prompt can state the new size.",
        cost,
    )


def frecas_2048_sdxl(g: Graph) -> None:
    look = "leaves and houses: detail, and no second valley in the sky. Settings: the authors' for SDXL."
    cost = "40 steps at 1024 and 10 at 2048 with CFG: two fifths of the operations of 40 steps at 2048, or less."
    _frecas(g, "frecas_2048_sdxl", "1024, 2048", 0, look, cost)


def frecas_4096_sdxl(g: Graph) -> None:
    look = "leaves and houses, at full size. The VAE works in tiles of 1024. Settings: the authors' for SDXL."
    cost = "30 steps at 1024, 5 at 2048 and 15 at 4096 with CFG; minutes on a large card, and memory for 4096."
    settings = {"steps": "30, 5, 15", "ends": "0.4, 0.2", "gamma": 2.0}
    _frecas(g, "frecas_4096_sdxl", "1024, 2048, 4096", 1024, look, cost, **settings)


# CFG++ ---------------------------------------------------------------------------------------------------------------


def cfgpp_sdxl(g: Graph) -> None:
    m = models.sdxl(g)
    positive, negative = prompts(
        g, m.clip, "a glass teapot with blooming tea on a marble table, steam, soft morning light, photo", SDXL_NEGATIVE
    )
    latent = image(g, 1024)
    plus = g.add("GuidekitCFGPP", model=m.model)
    k = sampler(g, plus[0], positive[0], negative[0], latent, 40, 7.5, "euler", "normal")
    save(g, k[0], m.vae, "cfgpp_sdxl")
    in_app(g, (positive, "text"), (k, "seed"), (k, "steps"), (plus, "guidance_lambda"))
    note(
        g,
        "CFG++ guides the denoised image and adds the noise back without guidance, so that steps stay near images that "
        "the model knows. Instead of the sampler's cfg it uses `guidance_lambda`, at most about 1.",
        f"edges of glass and steam, and at colours. {BYPASS}",
        "`guidance_lambda` 0.4 to 0.9; 50 steps, as in the paper, for more guidance at the same lambda. For samplers "
        "other than euler: the node CFG++ Sampler.",
        "no extra evaluations of the network.",
    )


# Preferences ---------------------------------------------------------------------------------------------------------


def preference_lora_sdxl(g: Graph) -> None:
    m = models.sdxl(g)
    positive, negative = prompts(
        g, m.clip, "a hummingbird at an orchid in the rain, macro photo, dark background", SDXL_NEGATIVE
    )
    latent = image(g, 1024)
    tuned = g.add("GuidekitPreferenceLoraLoader", files=(models.SPO_SDXL,), model=m.model, file=models.SPO_SDXL.name)
    k = sampler(g, tuned[0], positive[0], negative[0], latent, 25, 5.0, "dpmpp_2m", "karras")
    save(g, k[0], m.vae, "preference_lora_sdxl")
    in_app(g, (positive, "text"), (k, "seed"), (tuned, "strength"), (tuned, "apply_to"))
    note(
        g,
        "SPO tuned SDXL step by step to images that people prefer. Its LoRA has the key names of diffusers, which "
        "ComfyUI's own loader ignores; this one says what it has applied.",
        f"detail, light and contrast. {BYPASS}",
        "`strength` 0.5 to 1.5; your own DPO, KTO or SPO LoRAs, in any program's format.",
        "no extra evaluations of the network.",
    )


def preference_unet_sd15(g: Graph) -> None:
    m = models.sd15(g)
    positive, negative = prompts(
        g, m.clip, "a mountain village at dusk, lights in the windows, snow, detailed", "blurry"
    )
    latent = image(g, 512)
    name = f"diffusion_models/{models.KTO_SD15.name}"
    tuned = g.add("GuidekitPreferenceLoraLoader", files=(models.KTO_SD15,), model=m.model, file=name)
    k = sampler(g, tuned[0], positive[0], negative[0], latent, 25, 7.5, "dpmpp_2m", "karras")
    save(g, k[0], m.vae, "preference_unet_sd15")
    in_app(g, (positive, "text"), (k, "seed"), (tuned, "strength"), (tuned, "apply_to"))
    note(
        g,
        "Diffusion-KTO is a whole SD1.5 network, tuned to what people like and dislike. Loaded as a change of the "
        "checkpoint, it has a strength. Its file is called diffusion_pytorch_model.safetensors; save it as "
        f"{models.KTO_SD15.name}.",
        f"composition and detail. {BYPASS}",
        "`strength` 0.5 to 1.3; Diffusion-DPO's network in the same way (mhdang/dpo-sd1.5-text2image-v1).",
        "no extra evaluations of the network; memory for a second one while it is loaded, less with `rank` 64.",
    )


def npo_sdxl(g: Graph) -> None:
    m = models.sdxl(g)
    positive, negative = prompts(
        g, m.clip, "an attractive library with spiral stairs, an old man reading, warm lamps, photo", SDXL_NEGATIVE
    )
    latent = image(g, 1024)
    inputs = {"file": models.NPO_SDXL.name, "apply_to": "negative only"}
    tuned = g.add("GuidekitPreferenceLoraLoader", files=(models.NPO_SDXL,), model=m.model, **inputs)
    k = sampler(g, tuned[0], positive[0], negative[0], latent, 25, 5.0, "dpmpp_2m", "karras")
    save(g, k[0], m.vae, "npo_sdxl")
    in_app(g, (positive, "text"), (k, "seed"), (tuned, "strength"), (tuned, "apply_to"))
    note(
        g,
        "Diffusion-NPO tuned a LoRA to what people dislike. It is for the negative prompt's prediction alone: guidance "
        "leads away from it.",
        f"faces, light and detail. {BYPASS}",
        "`strength` 0.5 to 1; the SPO LoRA for both prompts, in a second loader before this one; cfg 4 to 7.",
        "no extra evaluations of the network: the LoRA is added for the rows of the negative.",
    )


def _teach(g: Graph, m: Loaded, name: str, unwanted: Node, guidance: float, how: tuple, **given: object) -> None:
    latent = image(g, 1024, 4)
    texts = [g.add("CLIPTextEncode", title, color=GREEN, column=1, clip=m.clip, text=text) for title, text in _TAUGHT]
    positives = [node[0] for node in texts]
    if guidance:
        positives = [g.add("FluxGuidance", column=1, conditioning=p, guidance=guidance)[0] for p in positives]
    with g.row("Vote; then a LoRA is trained and used"):
        reports = []
        for i, positive in enumerate(positives[:2]):
            made = sampler(g, m.model, positive, unwanted[0], latent, *how, seed=10 + i)[0]
            images = g.add("VAEDecode", column=3, samples=made, vae=m.vae)[0]
            inputs = {"samples": made, "model": m.model, "positive": positive, "negative": unwanted[0]}
            reports.append(g.add("GuidekitVote", column=3, images=images, tag=name, **inputs)["report"])
        both = {"string_a": reports[0], "string_b": reports[1], "delimiter": " "}
        after = g.add("StringConcatenate", "After the votes", column=5, **both)[0]
        votes = g.add("GuidekitVotes", column=5, tag=name, vae=m.vae, clip=m.clip, after=after)
        rate = {"steps": 200, "learning_rate": 1e-4, "name": name, "preview_every": 50}
        trained = g.add("GuidekitTrainPreference", column=4, model=m.model, votes=votes["votes"], **rate, **given)
        k = sampler(g, trained[0], positives[2], unwanted[0], latent, *how, seed=20)
        save(g, k[0], m.vae, name)
        k.column = g.nodes[-1].column = g.nodes[-2].column = 5
    in_app(g, (texts[2], "text"), (k, "seed"), (trained, "objective"), (trained, "steps"), (trained, "learning_rate"))


_TAUGHT = (
    ("To vote on, 1", "a lighthouse on a rocky coast, waves"),
    ("To vote on, 2", "an old bicycle in front of a bakery, morning"),
    ("To be made with the LoRA", "a red fox in a birch forest"),
)


def train_preference_sdxl(g: Graph) -> None:
    m = models.sdxl(g)
    unwanted = g.add("CLIPTextEncode", "Negative prompt", color=RED, column=0, clip=m.clip, text=SDXL_NEGATIVE)
    _teach(g, m, "my_taste_sdxl", unwanted, 0.0, (25, 5.0, "dpmpp_2m", "karras"), objective="KTO", images_at_once=4)
    note(
        g,
        "Run, and like or dislike the images: for their light, their mood, how things stand in the frame, whatever no "
        "word says. Run again: with 4 likes and 4 dislikes a LoRA is trained on them and used; until then the trainer "
        "says what is missing.",
        "the curve in the trainer: likes should rise above dislikes; then the saved images, with the trainer bypassed "
        "(Ctrl+B) and without.",
        "other seeds and prompts until there are 30 likes and 30 dislikes, of each prompt both; another `objective`; "
        "the next round with `go_on_from` my_taste_sdxl.safetensors and images of it.",
        "200 steps of 8 votes, each three evaluations and a gradient: about four minutes on a large card, where "
        "`images_at_once` 4 takes 9 GiB; 1 takes 6 GiB, and longer. None when sampling. What is learned we measured on "
        "the demo models only.",
    )


def train_preference_flux_dev(g: Graph) -> None:
    m = models.flux(g, models.FLUX_DEV)
    unwanted = g.add("CLIPTextEncode", UNREAD, color=RED, column=0, clip=m.clip, text="")
    _teach(g, m, "my_taste_flux", unwanted, 3.5, (20, 1.0), noise_levels="middle")
    note(
        g,
        "Run, and like or dislike the images. Run again: with 4 likes and 4 dislikes a LoRA is trained on them and "
        "used; until then the trainer says what is missing.",
        "the curve in the trainer: likes should rise above dislikes; then the saved images, with the trainer bypassed "
        "(Ctrl+B) and without.",
        "other seeds and prompts until there are 30 likes and 30 dislikes, of each prompt both; `weight_dtype` fp8 in "
        "the loader, if memory is short: weights are not changed; the next round with `go_on_from` "
        "my_taste_flux.safetensors and images of it.",
        "200 steps of 8 votes, each two evaluations and a gradient, with memory for the gradient of one image. None "
        "when sampling. We measured on the demo models only.",
    )


# Another meaning for a word -------------------------------------------------------------------------------------------


def concept_edit_sdxl(g: Graph) -> None:
    m = models.sdxl(g)
    inputs = {"edits": "a rose -> a blue rose", "keep": "a tulip\na red dress\na vase", "save_as": "blue_roses"}
    edit = g.add("GuidekitConceptEdit", model=m.model, clip=m.clip, **inputs)
    positive, negative = prompts(g, m.clip, "a bouquet of roses on a wooden table, window light, photo", SDXL_NEGATIVE)
    latent = image(g, 1024)
    k = sampler(g, edit[0], positive[0], negative[0], latent, 28, 6.0, "dpmpp_2m", "karras")
    save(g, k[0], m.vae, "concept_edit_sdxl")
    in_app(g, (edit, "edits"), (edit, "keep"), (positive, "text"), (k, "seed"), (edit, "strength"))
    note(
        g,
        "SDXL makes roses red. Concept Edit changes that in its weights, in closed form and in a second: from now on a "
        "rose is a blue rose, and what is in *keep* stays as it was.",
        f"the roses, and at a prompt with a red rose: a named colour still counts. {BYPASS}",
        "edits of your own, one per line; `Van Gogh -> art` with `expand` style to forget a style; TIME as `method` "
        "with a pack of roses -> a pack of blue roses; more lines in *keep* where too much changes.",
        "a second, once; none when sampling. The edit is saved in models/loras/guidekit/blue_roses.safetensors, for "
        "any LoRA loader.",
    )


def debias_sd15(g: Graph) -> None:
    m = models.sd15(g)
    positive, negative = prompts(g, m.clip, "a photo of a doctor", "blurry, low quality")
    latent = image(g, 512, 8)
    how = (25, 7.0, "dpmpp_2m", "karras")
    with g.row("The model alone: count"):
        plain = sampler(g, m.model, positive[0], negative[0], latent, *how)
        save(g, plain[0], m.vae, "1_as_it_is")
    with g.row("Edited: count again"):
        lines = {"edits": "a doctor -> + 0.4 a woman", "keep": "a woman\na man\na photo"}
        edit = g.add("GuidekitConceptEdit", model=m.model, clip=m.clip, expand="object", **lines)
        k = sampler(g, edit[0], positive[0], negative[0], latent, *how)
        save(g, k[0], m.vae, "2_edited")
    in_app(g, (edit, "edits"), (edit, "keep"), (positive, "text"), (k, "seed"))
    note(
        g,
        "UCE against a bias: a number says how far the concept is moved towards what is too rare. The upper row is the "
        "model alone, the lower one the model with the numbers in *edits*.",
        "how many of the eight doctors are women, in both rows.",
        "the loop: change the number by a tenth of the difference from the wanted share (0.5), queue again and count, "
        "until it is near enough; several attributes in one line, + 0.3 a woman - 0.1 a man; other seeds, because "
        "eight images are few.",
        "a second, once; none when sampling.",
    )


# One style -----------------------------------------------------------------------------------------------------------


def style_aligned_sdxl(g: Graph) -> None:
    m = models.sdxl(g)
    style = "macro photo, 3d game asset"
    positive, negative = prompts(g, m.clip, f"a toy train. {style}", SDXL_NEGATIVE)
    how = (30, 7.0, "euler", "normal")
    with g.row("The first image"):
        first = sampler(g, m.model, positive[0], negative[0], image(g, 1024), *how)
        save(g, first[0], m.vae, "1_first")
    with g.row("Others in its style"):
        other = g.add("CLIPTextEncode", "Another prompt", color=GREEN, clip=m.clip, text=f"a toy boat. {style}")
        inputs = {"reference": "reference latent", "latent": first[0]}
        aligned = g.add("GuidekitStyleAligned", model=m.model, **inputs)
        k = sampler(g, aligned[0], other[0], negative[0], image(g, 1024, 2), *how, seed=2)
        save(g, k[0], m.vae, "2_in_its_style")
    in_app(g, (positive, "text"), (other, "text"), (k, "seed"), (aligned, "share"), (aligned, "strength"))
    note(
        g,
        "StyleAligned lets images attend to another one while they are sampled: in self-attention they use its keys "
        "and values too, and take over the mean and spread of its queries and keys. Prompts as in the paper: an "
        "object, then the style.",
        f"colours, light and lens: those of the first image. {BYPASS}",
        "`share` 0.7 for more of the reference, -0.7 for less; `adain` off; for one prompt and several seeds "
        "`reference` first image, with a batch of four.",
        "each prediction of the second row costs two, and attention runs over twice as many tokens.",
    )


def style_photo_sdxl(g: Graph) -> None:
    m = models.sdxl(g)
    style = "child's drawing, crayons"
    photo = g.add("LoadImage", "Your image", image="example.png")
    size = {"upscale_method": "lanczos", "megapixels": 1.0, "resolution_steps": 8}
    scaled = g.add("ImageScaleToTotalPixels", image=photo[0], column=0, **size)
    latent = g.add("VAEEncode", pixels=scaled[0], vae=m.vae, column=0)
    shows = f"a girl in a pink dress on a green hill, {style}"
    source = g.add("CLIPTextEncode", "What your image shows", color=GREEN, clip=m.clip, text=shows)
    positive, negative = prompts(g, m.clip, f"a sailing ship on the sea, {style}", "")
    sigmas = g.add("BasicScheduler", model=m.model, scheduler="normal", steps=30, denoise=1.0, column=1)
    guider = g.add("BasicGuider", model=m.model, conditioning=source[0], column=1)
    inputs = {"guider": guider[0], "sigmas": sigmas[0], "latent": latent[0]}
    recorded = g.add("GuidekitTrajectoryRecord", column=2, **inputs)
    inputs = {"reference": "reference latent", "latent": recorded[0], "share": 0.69}
    aligned = g.add("GuidekitStyleAligned", model=m.model, column=2, **inputs)
    k = sampler(g, aligned[0], positive[0], negative[0], image(g, 1024, 2), 30, 7.0, "euler", "normal")
    save(g, k[0], m.vae, "style_photo_sdxl")
    in_app(g, (photo, "image"), (source, "text"), (positive, "text"), (k, "seed"), (aligned, "share"))
    note(
        g,
        "Your image is inverted to noise (DDIM inversion), and in every step of the sampling StyleAligned lets the new "
        "images attend to its state at that step.",
        f"strokes, colours and paper: those of your image. {BYPASS}",
        "describe your image, with its style, in *What your image shows*, and give the new prompt the same words for "
        "the style; `share` 0 for less of it, 1 for more.",
        "an inversion of 30 evaluations; then each prediction costs two.",
    )


# Mistaken for something else -----------------------------------------------------------------------------------------


def gfcg_sd15(g: Graph) -> None:
    m = models.sd15(g)
    sees = g.add("CLIPVisionLoader", files=(models.CLIP_SEES,), clip_name=models.CLIP_SEES.name)
    names = {"clip_name": models.CLIP_READS.name, "type": "stable_diffusion", "device": "default"}
    reads = g.add("CLIPLoader", files=(models.CLIP_READS,), **names)
    words = "snow leopard\njaguar\ncheetah\nordinary leopard"
    prompt = "a photo of a {slot} lying on a rock"
    candidates = g.add("GuidekitCandidates", clip=m.clip, prompt=prompt, words=words, column=1)
    negative = g.add("CLIPTextEncode", "Negative prompt", color=RED, clip=m.clip, text="blurry, low quality")
    latent = image(g, 512)
    classifier = g.add("GuidekitCLIPClassifier", clip_vision=sees[0], clip=reads[0])
    inputs = {"classifier": classifier[0], "candidates": candidates[0], "vae": m.vae}
    guided = g.add("GuidekitGFCG", model=m.model, **inputs)
    k = sampler(g, guided[0], candidates[1], negative[0], latent, 25, 7.0, "dpmpp_2m", "karras")
    save(g, k[0], m.vae, "gfcg_sd15")
    in_app(g, (candidates, "prompt"), (candidates, "words"), (k, "seed"), (guided, "scale"), (guided, "measure"))
    note(
        g,
        "SD1.5 mixes up similar things. In every step CLIP looks at the predicted image, and where it could be another "
        "word of the list, guidance leads away from that word. The first word is what the image should show.",
        f"the fur: rosettes, spots or stripes. {BYPASS}",
        "your own words, the wanted one first, then three to ten that it is mistaken for; `scale` 2 to 10. Save the "
        f"file as {models.CLIP_SEES.name} in both folders: it holds the image encoder and the text encoder.",
        "one extra evaluation in each step in which CLIP is in doubt, and decoding in every step.",
    )


_APG = "Less burnt colours at high CFG (APG)"
_NAMED = {name: f"Better structure and hands ({name})" for name in ("PAG", "SEG", "SLG")}
_AT_1 = "A negative prompt at CFG 1 (NAG)"
_UNLIKE = "More variety between seeds (NegToMe)"
_LARGE = "Large images without repetition"
_TEACH = "Teach it your taste (Train Preference LoRA)"
_MEANING = "Another meaning for a word"
_STYLE = "Images in one style (StyleAligned)"
_FASTER = "Same quality in less time (Adaptive Guidance, interval)"

TEMPLATES = (
    Template("apg_sdxl", f"{_APG} - SDXL", apg_sdxl, "apg"),
    Template("apg_qwen_image", f"{_APG} - Qwen-Image", apg_qwen_image, "apg"),
    Template("pag_sdxl", f"{_NAMED['PAG']} - SDXL", pag_sdxl, "pag"),
    Template("seg_sdxl", f"{_NAMED['SEG']} - SDXL", seg_sdxl),
    Template("slg_sd35", f"{_NAMED['SLG']} - SD3.5 medium", slg_sd35),
    Template("pag_flux_dev", f"{_NAMED['PAG']} - Flux dev", pag_flux_dev, "pag"),
    Template("nag_flux_dev", f"{_AT_1} - Flux dev", nag_flux_dev, "nasa"),
    Template("nag_flux_schnell", f"{_AT_1} - Flux schnell", nag_flux_schnell, "nasa"),
    Template("nag_z_image_turbo", f"{_AT_1} - Z-Image-Turbo", nag_z_image_turbo, "nasa"),
    Template("nag_wan", f"{_AT_1} - Wan 2.2 in 4 steps", nag_wan, "nasa"),
    Template("negtome_z_image_turbo", f"{_UNLIKE} - Z-Image-Turbo", negtome_z_image_turbo, "negtome"),
    Template("negtome_qwen_lightning", f"{_UNLIKE} - Qwen-Image-Lightning", negtome_qwen_lightning, "negtome"),
    Template(
        "negtome_reference_z_image_turbo",
        "More variety, one image at a time (NegToMe) - Z-Image-Turbo",
        negtome_reference_z_image_turbo,
        "negtome",
    ),
    Template("fast_sdxl", f"{_FASTER} - SDXL", fast_sdxl, "adaptive_guidance"),
    Template("fast_qwen_image", f"{_FASTER} - Qwen-Image", fast_qwen_image, "adaptive_guidance"),
    Template("fast_chroma", f"{_FASTER} - Chroma", fast_chroma, "adaptive_guidance"),
    Template("fast_wan", f"{_FASTER} - Wan 2.2", fast_wan, "adaptive_guidance"),
    Template("cache_qwen_image", "Same quality in less time (CFG-Cache) - Qwen-Image", cache_qwen_image, "cfg_cache"),
    Template(
        "cfg_zero_star_sd35",
        "Better images of flow models (CFG-Zero) - SD3.5 medium",
        cfg_zero_star_sd35,
        "cfg_zero_star",
    ),
    Template(
        "frequency_guidance_sdxl",
        "More detail, not more colour (Frequency Guidance) - SDXL",
        frequency_guidance_sdxl,
        "frequency_guidance",
    ),
    Template("frecas_2048_sdxl", f"{_LARGE}, 2048 (FreCaS) - SDXL", frecas_2048_sdxl, "frecas"),
    Template("frecas_4096_sdxl", f"{_LARGE}, 4096 (FreCaS) - SDXL", frecas_4096_sdxl, "frecas"),
    Template("cfgpp_sdxl", "Natural colours and clean edges (CFG++) - SDXL", cfgpp_sdxl, "sampler_cfgpp"),
    Template(
        "preference_lora_sdxl", "Images that people prefer (SPO LoRA) - SDXL", preference_lora_sdxl, "preference_lora"
    ),
    Template(
        "preference_unet_sd15", "Images that people prefer (KTO) - SD1.5", preference_unet_sd15, "preference_lora"
    ),
    Template("train_preference_sdxl", f"{_TEACH} - SDXL", train_preference_sdxl, "train_preference"),
    Template("train_preference_flux_dev", f"{_TEACH} - Flux dev", train_preference_flux_dev, "train_preference"),
    Template("npo_sdxl", "Away from what people dislike (Diffusion-NPO) - SDXL", npo_sdxl, "preference_cfg"),
    Template("concept_edit_sdxl", f"{_MEANING} (Concept Edit) - SDXL", concept_edit_sdxl, "concept_edit"),
    Template("debias_sd15", "Half and half (Concept Edit against a bias) - SD1.5", debias_sd15, "concept_edit"),
    Template("style_aligned_sdxl", f"{_STYLE} - SDXL", style_aligned_sdxl, "style_aligned"),
    Template(
        "style_photo_sdxl", "Images in the style of a photo (StyleAligned) - SDXL", style_photo_sdxl, "style_aligned"
    ),
    Template("gfcg_sd15", "Not mistaken for something else (GFCG with CLIP) - SD1.5", gfcg_sd15, "gfcg"),
)
