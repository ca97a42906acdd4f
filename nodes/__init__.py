"""The nodes, one file per technique: a schema, and a few lines that attach the technique to a model."""

from comfy_api.latest import ComfyExtension, io

from .adaptive_guidance import AdaptiveGuidance
from .apg import APG
from .autoguidance import Autoguidance
from .candidate import Candidate
from .candidates import Candidates
from .cfg_cache import CFGCache
from .cfg_zero_star import CFGZeroStar
from .cfgpp import CFGPP
from .cfgpp_inversion import CFGPPInversion
from .clip_classifier import CLIPClassifier
from .concept_edit import ConceptEdit
from .demo_model import DemoModel
from .elucd import EluCD
from .exact_invert import ExactInvert
from .exact_sample import ExactSample
from .export_votes import ExportVotes
from .frecas_plan import FreCaSPlan
from .frecas_up import FreCaSUp
from .frequency_guidance import FrequencyGuidance
from .gfcg import GFCG
from .guidance_interval import GuidanceInterval
from .host.run import told
from .host.votes import routes
from .image_classifier import ImageClassifier
from .import_votes import ImportVotes
from .linear_ag import LinearAG
from .linear_ag_fit import LinearAGFit
from .load_inversion import LoadInversion
from .nasa import NASA
from .negtome import NegToMe
from .pag import PAG
from .preference_cfg import PreferenceCFG
from .preference_lora_loader import PreferenceLoraLoader
from .preference_score import PreferenceScore
from .report import Report
from .sampler_cfgpp import SamplerCFGPP
from .save_inversion import SaveInversion
from .seg import SEG
from .slg import SLG
from .style_aligned import StyleAligned
from .train_preference import TrainPreference
from .trajectory_record import TrajectoryRecord
from .trajectory_replay import TrajectoryReplay
from .vote import Vote
from .vote_by_rule import VoteByRule
from .votes import Votes

NODES: list[type[io.ComfyNode]] = [
    APG,
    PAG,
    SEG,
    SLG,
    Autoguidance,
    CFGZeroStar,
    FrequencyGuidance,
    GuidanceInterval,
    CFGPP,
    SamplerCFGPP,
    CFGPPInversion,
    FreCaSPlan,
    FreCaSUp,
    AdaptiveGuidance,
    LinearAG,
    LinearAGFit,
    CFGCache,
    GFCG,
    Candidates,
    Candidate,
    EluCD,
    CLIPClassifier,
    ImageClassifier,
    NegToMe,
    StyleAligned,
    NASA,
    ExactInvert,
    ExactSample,
    TrajectoryRecord,
    TrajectoryReplay,
    SaveInversion,
    LoadInversion,
    PreferenceLoraLoader,
    PreferenceCFG,
    ConceptEdit,
    Vote,
    VoteByRule,
    Votes,
    ImportVotes,
    ExportVotes,
    TrainPreference,
    PreferenceScore,
    Report,
    DemoModel,
]


class GuidekitExtension(ComfyExtension):
    async def on_load(self) -> None:
        told.serve()
        routes.serve()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
