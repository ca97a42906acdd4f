"""The nodes of the product tests. A new node joins by adding one line to PRODUCTS."""

from dataclasses import dataclass

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from guidekit.benchmarks._nodes import run_node
from guidekit.nodes.adaptive_guidance import AdaptiveGuidance
from guidekit.nodes.apg import APG
from guidekit.nodes.autoguidance import Autoguidance
from guidekit.nodes.cfg_cache import CFGCache
from guidekit.nodes.cfg_zero_star import CFGZeroStar
from guidekit.nodes.cfgpp import CFGPP
from guidekit.nodes.elucd import EluCD
from guidekit.nodes.frequency_guidance import RESIZE, FrequencyGuidance
from guidekit.nodes.gfcg import AUTOGUIDANCE, GFCG, SWAP
from guidekit.nodes.guidance_interval import GuidanceInterval
from guidekit.nodes.host.network.blocks import reaches_unet_layers
from guidekit.nodes.nasa import NASA
from guidekit.nodes.negtome import NegToMe
from guidekit.nodes.pag import PAG
from guidekit.nodes.preference_cfg import MIXTURE, PreferenceCFG
from guidekit.nodes.seg import SEG
from guidekit.nodes.slg import SLG
from guidekit.nodes.style_aligned import StyleAligned
from guidekit.tests.host import adapters, guides, tiny


@dataclass(frozen=True, eq=False)
class Product:
    """A node that takes and gives a MODEL: a name for the test's id, the class, settings that must act, settings that
    must not (None: it has none), further predictions per step that it costs, and the families that it works on.

    `attaches`: the mechanisms that it is made of (mechanisms.py), by which it is paired with others. `evaluations` and
    `evaluations_at_cfg_1`: all predictions of 4 steps, where they are not the same in every step. `leaves_the_rest`:
    outside its range it is as if it were not there.
    """

    name: str
    node: type[io.ComfyNode]
    acting: dict
    neutral: dict | None
    attaches: set[str]
    extra_evaluations: int = 0
    evaluations: int | None = None
    evaluations_at_cfg_1: int | None = None
    leaves_the_rest: bool = True
    families: tuple[str, ...] = tuple(tiny.FAMILIES)
    guides_at_cfg_1: bool = False
    second_model: str = ""  # the input that takes one
    shares_weights: bool = False  # of the second model: it is the first with a LoRA
    needs_latent: bool = False
    needs_negative: bool = False
    needs_classifier: bool = False
    needs_candidates: bool = False
    rides: bool = False  # beside every prediction goes another of the same prompt
    asks_twice: bool = False  # the network, in every step, without a further prediction
    corrects: bool = True  # after CFG; else it changes what the network does
    sets_scale: bool = False
    ordered: bool = False  # its place among other nodes counts, as its help page says

    def apply(self, model: ModelPatcher, **settings) -> ModelPatcher:
        others = {}
        if self.second_model:
            others[self.second_model] = adapters.lora(model) if self.shares_weights else tiny.worse(model)
        if self.needs_latent:
            others["latent"] = {"samples": tiny.noise(tiny.family_of(model), seed=60)}
        if self.needs_negative:
            others["negative"] = tiny.conditioning(tiny.family_of(model), 33, 5)
        if self.needs_classifier:
            others["classifier"] = guides.classifier(device=model.load_device)
        if self.needs_candidates:
            others["candidates"] = guides.candidates(tiny.family_of(model))
        return run_node(self.node, model=model, **others, **{**self.acting, **settings})


SKIPPABLE = tuple(f for f in tiny.FAMILIES if f != "unet" or reaches_unet_layers())
PICTURES = tuple(f for f, t in tiny.FAMILIES.items() if len(t.latent) == 3 or t.latent[1] == 1)  # not videos
FLOWS = tuple(f for f in tiny.FAMILIES if f != "unet")
# In the tiny Qwen-Image the best scale of the negative goes through 1, which is no change.
WITHOUT_QWEN = tuple(f for f in tiny.FAMILIES if f != "qwen_image")
NEUTRAL_APG = {"eta": 1.0, "momentum": 0.0, "norm_threshold": 0.0}
WEAKENED = {"corrections", "resumed branches"}
# One token of the reference may be matched: no choice that rounding could make.
ONE_TOKEN = torch.zeros(1, 64, 64)
ONE_TOKEN[0, 0, 0] = 1
PRODUCTS = [
    Product("apg", APG, {}, NEUTRAL_APG, {"corrections", "memory"}),
    Product(
        "apg_everything",
        APG,
        {"scope": "everything before", "norm_threshold": 0.01},
        NEUTRAL_APG,
        {"corrections", "memory"},
        ordered=True,
    ),
    Product(
        "zero_star",
        CFGZeroStar,
        {"zero_init": 0.0},
        {"optimized_scale": False, "zero_init": 0.0},
        {"corrections"},
        families=WITHOUT_QWEN,
    ),
    Product(
        "zero_init",
        CFGZeroStar,
        {"optimized_scale": False, "zero_init": 0.25},
        {"optimized_scale": False, "zero_init": 0.0},
        {"results"},
        leaves_the_rest=False,  # the first step is in no range that begins later
        families=FLOWS,
        guides_at_cfg_1=True,
        corrects=False,
    ),
    Product("frequency", FrequencyGuidance, {}, {"high": 1.0}, {"corrections"}),
    Product("frequency_resized", FrequencyGuidance, {"split": RESIZE}, {"high": 1.0}, {"corrections"}),
    Product("pag", PAG, {}, {"scale": 0.0}, WEAKENED | {"attention"}, extra_evaluations=1, guides_at_cfg_1=True),
    Product(
        "seg",
        SEG,
        {"blur": 1.0, "rescale": "partial"},
        {"blur": 0.0},
        WEAKENED | {"attention"},
        extra_evaluations=1,
        guides_at_cfg_1=True,
    ),
    Product(
        "slg",
        SLG,
        {"rescale": "full"},
        {"scale": 0.0},
        WEAKENED | {"skips"},
        extra_evaluations=1,
        families=SKIPPABLE,
        guides_at_cfg_1=True,
    ),
    Product(
        "slg_random",
        SLG,
        {"random_blocks": 1, "random_seed": 7},
        {"scale": 0.0},
        WEAKENED | {"skips"},
        extra_evaluations=1,
        families=SKIPPABLE,
        guides_at_cfg_1=True,
    ),
    Product(
        "autoguidance",
        Autoguidance,
        {},
        {"amount": 0.0},
        WEAKENED | {"attention"},
        extra_evaluations=1,
        guides_at_cfg_1=True,
    ),
    Product(
        "autoguidance_noise",
        Autoguidance,
        {"weakness": "token noise", "rescale": "partial"},
        {"scale": 0.0},
        WEAKENED | {"attention"},
        extra_evaluations=1,
        guides_at_cfg_1=True,
    ),
    Product(
        "autoguidance_model",
        Autoguidance,
        {"weakness": "second model"},
        {"scale": 0.0},
        {"corrections", "models", "loaded beside"},
        guides_at_cfg_1=True,
        second_model="weak_model",
    ),
    Product(
        "autoguidance_lora",
        Autoguidance,
        {"weakness": "second model"},
        {"scale": 0.0},
        {"corrections", "branches", "row LoRA"},
        extra_evaluations=1,
        guides_at_cfg_1=True,
        second_model="weak_model",
        shares_weights=True,
    ),
    Product(
        "negtome",
        NegToMe,
        {"reference": "reference latent", "steps": "start to end", "threshold": -1.0, "mask": ONE_TOKEN},
        {"alpha": 0.0},
        {"attention", "attention output", "riders"},
        evaluations=16,
        evaluations_at_cfg_1=8,
        rides=True,
        guides_at_cfg_1=True,
        needs_latent=True,
        corrects=False,
    ),
    Product(
        "style_aligned",
        StyleAligned,
        {"reference": "reference latent", "share": 0.5},
        {"strength": 0.0},
        {"attention", "riders"},
        evaluations=16,
        evaluations_at_cfg_1=8,
        rides=True,
        guides_at_cfg_1=True,
        needs_latent=True,
        corrects=False,
    ),
    Product(
        "nasa",
        NASA,
        {"method": "NASA", "nasa_alpha": 0.4},
        {"method": "NASA", "nasa_alpha": 0.0},
        {"second text"},
        guides_at_cfg_1=True,
        needs_negative=True,
        corrects=False,
    ),
    Product(
        "nag",
        NASA,
        {"method": "NAG"},
        {"method": "NAG", "nag_alpha": 0.0},
        {"second text"},
        guides_at_cfg_1=True,
        needs_negative=True,
        corrects=False,
    ),
    Product(
        "gfcg",
        GFCG,
        {"measure": "const"},
        {"scale": 0.0},
        {"corrections", "branches", "references", "loaded beside"},
        extra_evaluations=1,
        guides_at_cfg_1=True,
        needs_classifier=True,
        needs_candidates=True,
    ),
    Product(
        "gfcg_lag",
        GFCG,
        {"measure": "const", "use_previous_step": True},
        {"scale": 0.0},
        {"corrections", "branches", "references", "loaded beside", "memory"},
        evaluations=4 * 2 + 3,
        evaluations_at_cfg_1=4 + 3,
        guides_at_cfg_1=True,
        needs_classifier=True,
        needs_candidates=True,
        leaves_the_rest=False,  # its first step has none before it
    ),
    Product(
        "gfcg_swap",
        GFCG,
        {"measure": "const", "combination": SWAP},
        None,
        {"negative", "references", "loaded beside"},
        needs_classifier=True,
        needs_candidates=True,
        asks_twice=True,
        corrects=False,
    ),
    Product(
        "gfcg_model",
        GFCG,
        {"measure": "const", "combination": AUTOGUIDANCE},
        {"scale": 0.0},
        {"corrections", "references", "models", "loaded beside"},
        guides_at_cfg_1=True,
        second_model="weak_model",
        needs_classifier=True,
        needs_candidates=True,
    ),
    Product(
        "elucd",
        EluCD,
        {"target": "dog", "scale": 0.1},
        {"target": "dog", "scale": 0.0},
        {"corrections", "loaded beside"},
        families=PICTURES,
        guides_at_cfg_1=True,
        needs_classifier=True,
    ),
    Product(
        "preference_cfg",
        PreferenceCFG,
        {},
        {"mode": MIXTURE, "model_weight": 1.0},
        {"row LoRA"},
        second_model="other_model",
        shares_weights=True,
        corrects=False,
    ),
    Product(
        "preference_cfg_model",
        PreferenceCFG,
        {},
        None,
        {"negative", "models", "loaded beside"},
        evaluations=4,
        evaluations_at_cfg_1=4,
        second_model="other_model",
        corrects=False,
    ),
    Product(
        "preference_mixture",
        PreferenceCFG,
        {"mode": MIXTURE},
        None,
        {"corrections", "branches", "row LoRA"},
        extra_evaluations=1,
        guides_at_cfg_1=True,
        second_model="other_model",
        shares_weights=True,
    ),
    Product("cfgpp", CFGPP, {}, None, {"set scale"}, evaluations_at_cfg_1=8, sets_scale=True),
    Product(
        "interval",
        GuidanceInterval,
        {"limits": "percent", "start_percent": 0.3},
        {"limits": "percent", "start_percent": 0.0},
        {"limit scale"},
        evaluations=6,
        leaves_the_rest=False,
    ),
    Product(
        "adaptive",
        AdaptiveGuidance,
        {"threshold": 0.0},
        {"threshold": 2.0},
        {"limit scale", "observer", "memory"},
        evaluations=5,
        leaves_the_rest=False,
    ),
    Product(
        "cache",
        CFGCache,
        {"every": 3, "warm_up": 0.0, "limit": 100.0},
        {"every": 1},
        {"negative", "branch cache", "memory"},
        evaluations=6,
        leaves_the_rest=False,  # its first step is evaluated
        corrects=False,
    ),
]
