"""The nodes, one file per technique: a schema, and a few lines that attach the technique to a model."""

from comfy_api.latest import ComfyExtension, io

from .adaptive_guidance import AdaptiveGuidance
from .apg import APG
from .autoguidance import Autoguidance
from .cfgpp import CFGPP
from .cfgpp_inversion import CFGPPInversion
from .demo_model import DemoModel
from .exact_invert import ExactInvert
from .exact_sample import ExactSample
from .guidance_interval import GuidanceInterval
from .linear_ag import LinearAG
from .linear_ag_fit import LinearAGFit
from .load_inversion import LoadInversion
from .nasa import NASA
from .negtome import NegToMe
from .pag import PAG
from .sampler_cfgpp import SamplerCFGPP
from .save_inversion import SaveInversion
from .seg import SEG
from .slg import SLG
from .trajectory_record import TrajectoryRecord
from .trajectory_replay import TrajectoryReplay

NODES: list[type[io.ComfyNode]] = [
    APG,
    PAG,
    SEG,
    SLG,
    Autoguidance,
    GuidanceInterval,
    CFGPP,
    SamplerCFGPP,
    CFGPPInversion,
    AdaptiveGuidance,
    LinearAG,
    LinearAGFit,
    NegToMe,
    NASA,
    ExactInvert,
    ExactSample,
    TrajectoryRecord,
    TrajectoryReplay,
    SaveInversion,
    LoadInversion,
    DemoModel,
]


class GuidekitExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
