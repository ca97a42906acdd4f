"""The nodes, one file per technique: a schema, and a few lines that attach the technique to a model."""

from comfy_api.latest import ComfyExtension, io

from .apg import APG
from .autoguidance import Autoguidance
from .demo_model import DemoModel
from .pag import PAG
from .seg import SEG
from .slg import SLG

NODES: list[type[io.ComfyNode]] = [APG, PAG, SEG, SLG, Autoguidance, DemoModel]


class GuidekitExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
