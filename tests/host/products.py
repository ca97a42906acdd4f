"""The nodes of the product tests. A new node joins by adding one line to PRODUCTS."""

from dataclasses import dataclass

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from guidekit.benchmarks._nodes import run_node
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

    def apply(self, model: ModelPatcher, **settings) -> ModelPatcher:
        return run_node(self.node, model=model, **{**self.acting, **settings})


NEUTRAL_APG = {"eta": 1.0, "momentum": 0.0, "norm_threshold": 0.0}
PRODUCTS = [
    Product("apg", APG, {}, NEUTRAL_APG),
    Product("apg_everything", APG, {"scope": "everything before", "norm_threshold": 0.01}, NEUTRAL_APG),
]
