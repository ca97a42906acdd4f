"""Subgraphs: what a template does, as one node to put into a workflow of one's own."""

from __future__ import annotations

from .graph import GREEN, RED
from .subgraph import Blueprint, Boundary


def quality(g: Boundary) -> None:
    interval, apg = "GuidekitGuidanceInterval", "GuidekitAPG"
    limited = g.add(interval, model=g.take("model", "MODEL"), limits=g.widget(interval, "limits"))
    names = ("eta", "momentum", "norm_threshold")
    projected = g.add(apg, model=limited[0], **{name: g.widget(apg, name) for name in names})
    g.give("MODEL", projected[0])


def fast(g: Boundary) -> None:
    kind = "GuidekitAdaptiveGuidance"
    names = ("threshold", "space")
    watched = g.add(kind, model=g.take("model", "MODEL"), **{name: g.widget(kind, name) for name in names})
    g.give("MODEL", watched[0])


def negative(g: Boundary) -> None:
    kind = "GuidekitNASA"
    model, clip = g.take("model", "MODEL"), g.take("clip", "CLIP")
    text = g.add("CLIPTextEncode", color=RED, clip=clip, text=g.widget("CLIPTextEncode", "text", "not in the image"))
    names = ("nag_scale", "nag_tau", "nag_alpha")
    steered = g.add(kind, model=model, negative=text[0], **{name: g.widget(kind, name) for name in names})
    g.give("MODEL", steered[0])


def variety(g: Boundary) -> None:
    kind = "GuidekitNegToMe"
    names = ("reference", "alpha", "threshold")
    merging = g.add(kind, model=g.take("model", "MODEL"), **{name: g.widget(kind, name) for name in names})
    g.give("MODEL", merging[0])


def edit(g: Boundary) -> None:
    model, clip, vae = g.take("model", "MODEL"), g.take("clip", "CLIP"), g.take("vae", "VAE")
    latent = g.add("VAEEncode", pixels=g.take("image", "IMAGE"), vae=vae)
    texts = [
        g.add("CLIPTextEncode", title, color=GREEN, clip=clip, text=g.widget("CLIPTextEncode", "text", title))
        for title in ("as it is", "edited")
    ]
    unwanted = g.add("CLIPTextEncode", "negative", color=RED, clip=clip, text="")
    kind = "BasicScheduler"
    settings = {name: g.widget(kind, name, default=value) for name, value in (("steps", 40), ("denoise", 0.8))}
    sigmas = g.add(kind, model=model, column=0, scheduler="normal", **settings)
    guiders = [g.add("CFGGuider", model=model, positive=t[0], negative=unwanted[0], cfg=3.0) for t in texts]
    inverted = g.add("GuidekitExactInvert", guider=guiders[0][0], sigmas=sigmas[0], latent=latent[0])
    sampled = g.add("GuidekitExactSample", guider=guiders[1][0], inverted=inverted[0])
    g.give("IMAGE", g.add("VAEDecode", samples=sampled[0], vae=vae)[0])


BLUEPRINTS = (
    Blueprint(
        "Guidekit Quality (interval, APG)",
        "A high CFG without burnt colours: guidance only at the noise levels where it helps, without the part that "
        "only amplifies the image. Between the loader and the sampler.",
        ("burnt", "overcooked", "high cfg", "quality"),
        quality,
    ),
    Blueprint(
        "Guidekit Fast (Adaptive Guidance)",
        "Stops evaluating the negative prompt once it makes no difference. Between the loader and the sampler.",
        ("faster", "speed", "skip cfg"),
        fast,
    ),
    Blueprint(
        "Guidekit Negative at CFG 1 (NAG)",
        "A negative prompt for models that run at cfg 1, such as Flux, Z-Image-Turbo and Lightning models. Between the "
        "loader and the sampler.",
        ("negative prompt flux", "negative prompt turbo"),
        negative,
    ),
    Blueprint(
        "Guidekit Variety (NegToMe)",
        "Makes the images of a batch differ, for models that make the same image whatever the seed. Between the loader "
        "and the sampler, which needs a batch of at least two.",
        ("same face", "same seed", "variety", "diversity"),
        variety,
    ),
    Blueprint(
        "Guidekit Edit by prompt (Exact Inversion)",
        "Edits an image by its prompt: describe it in the first text as it is, and with another word in the second. "
        "Less denoise keeps more of it.",
        ("edit photo", "unsample", "image edit"),
        edit,
    ),
)
