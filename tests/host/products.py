"""The nodes of the product tests. A new node joins by adding one line to PRODUCTS."""

from dataclasses import dataclass, field

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from guidekit.nodes.apg import APG
from guidekit.tests.host import tiny


@dataclass(frozen=True)
class Product:
    """A node that takes and gives a MODEL: a name for the test's id, the class, settings that must act, settings that
    must not, further predictions per step that it costs, and the families that it works on."""

    name: str
    node: type[io.ComfyNode]
    acting: dict
    neutral: dict
    extra_evaluations: int = 0
    families: tuple[str, ...] = tuple(tiny.FAMILIES)
    guides_at_cfg_1: bool = False
    settings: dict = field(default_factory=dict)

    def apply(self, model: ModelPatcher, **settings) -> ModelPatcher:
        return run_node(self.node, model=model, **{**self.acting, **settings})


def run_node(node: type[io.ComfyNode], **given):
    """The first output of a node, with the schema's defaults for the inputs that are not given."""
    schema = node.define_schema()
    defaults = {i.id: i.default for i in schema.inputs if getattr(i, "default", None) is not None}
    return node.execute(**{**defaults, **given})[0]


NEUTRAL_APG = {"eta": 1.0, "momentum": 0.0, "norm_threshold": 0.0}
PRODUCTS = [
    Product("apg", APG, {}, NEUTRAL_APG),
    Product("apg_everything", APG, {"scope": "everything before", "norm_threshold": 0.01}, NEUTRAL_APG),
]
