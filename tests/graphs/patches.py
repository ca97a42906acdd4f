"""Our nodes that take a MODEL and give one, at their defaults, with the inputs that they require."""

from dataclasses import dataclass, field

from guidekit.nodes import NODES

from .selection import Prompt
from .smaller import node

TEXTS, CLASSIFIER, CANDIDATES = "texts", "classifier", "candidates"
WORDS = "cube\nball\ncone"
_OF_CLASSIFIER = {CLASSIFIER: node("GuidekitImageClassifier", file="demo", labels="")}


@dataclass(frozen=True)
class Patch:
    """`inputs`: beside the defaults; a link begins with the id of a node in `beside`. `of_model`: inputs that a
    stand-in, named by its class, makes of the model."""

    name: str
    node_id: str
    inputs: dict = field(default_factory=dict)
    beside: Prompt = field(default_factory=dict)
    of_model: dict[str, str] = field(default_factory=dict)

    def with_defaults(self, info: dict, model: list) -> tuple[dict, Prompt]:
        """The node, and what stands beside it, for a model that comes through a link."""
        required = info[self.node_id]["input"].get("required", {})
        values = {name: spec[1]["default"] for name, spec in required.items() if len(spec) > 1 and "default" in spec[1]}
        beside = {**self.beside, **{f"for {name}": node(kind, model=model) for name, kind in self.of_model.items()}}
        inputs = {**values, **self.inputs, **{name: [f"for {name}", 0] for name in self.of_model}}
        return node(self.node_id, **inputs), beside


_NEGATIVE = {TEXTS: node("TestTexts"), "negative": node("CLIPTextEncode", text="blurred, too dark", clip=[TEXTS, 0])}
_CANDIDATES = {
    TEXTS: node("TestTexts"),
    CANDIDATES: node("GuidekitCandidates", clip=[TEXTS, 0], prompt="a large {slot} on grass", words=WORDS),
    **_OF_CLASSIFIER,
}
PATCHES = [
    Patch("APG", "GuidekitAPG"),
    Patch("PAG", "GuidekitPAG"),
    Patch("SEG", "GuidekitSEG"),
    Patch("SLG", "GuidekitSLG"),
    Patch("Autoguidance", "GuidekitAutoguidance"),
    Patch("CFG-Zero*", "GuidekitCFGZeroStar"),
    Patch("Frequency Guidance", "GuidekitFrequencyGuidance"),
    Patch("Guidance Interval", "GuidekitGuidanceInterval"),
    Patch("CFG++", "GuidekitCFGPP"),
    Patch("Adaptive Guidance", "GuidekitAdaptiveGuidance"),
    Patch("CFG-Cache", "GuidekitCFGCache"),
    Patch(
        "GFCG",
        "GuidekitGFCG",
        {"classifier": [CLASSIFIER, 0], "candidates": [CANDIDATES, 0]},
        _CANDIDATES,
    ),
    Patch("EluCD", "GuidekitEluCD", {"classifier": [CLASSIFIER, 0], "target": "cube"}, _OF_CLASSIFIER),
    Patch("NegToMe", "GuidekitNegToMe"),
    Patch(
        "NegToMe, reference latent",
        "GuidekitNegToMe",
        {"reference": "reference latent"},
        of_model={"latent": "TestLatent"},
    ),
    Patch("StyleAligned", "GuidekitStyleAligned"),
    Patch(
        "StyleAligned, reference latent",
        "GuidekitStyleAligned",
        {"reference": "reference latent"},
        of_model={"latent": "TestLatent"},
    ),
    Patch("NAG", "GuidekitNASA", {"negative": ["negative", 0]}, _NEGATIVE),
    Patch("NASA", "GuidekitNASA", {"negative": ["negative", 0], "method": "NASA"}, _NEGATIVE),
    Patch("Preference CFG", "GuidekitPreferenceCFG", of_model={"other_model": "TestTuned"}),
    Patch("Concept Edit", "GuidekitConceptEdit", {"clip": [TEXTS, 0]}, {TEXTS: node("TestTexts")}),
]
# They read a file that was made for one model and one schedule, or for one architecture; or train for minutes.
LEFT_OUT = {"GuidekitLinearAG", "GuidekitPreferenceLoraLoader", "GuidekitTrainPreference"}


def patch_nodes() -> set[str]:
    """The ids of all nodes of the pack that take a MODEL and give one."""
    schemas = [node.define_schema() for node in NODES]
    return {
        schema.node_id
        for schema in schemas
        if any(i.get_io_type() == "MODEL" for i in schema.inputs)
        and any(o.get_io_type() == "MODEL" for o in schema.outputs)
    }
