"""Votes for a trainer."""

from comfy_api.latest import io

from .host.inputs import checked
from .host.inputs.shared import random_seed_input
from .host.run.messages import tell
from .host.run.outputs import report_output, with_report
from .host.votes.encoders import Encoders
from .host.votes.inputs import ChoosesVotes, after_input, filter_from, filter_inputs
from .host.votes.opened import store
from .host.votes.selection import BALANCE, select
from .host.votes.vote_set import VotesType

LABEL = "Load Votes"


class Votes(ChoosesVotes):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidekitVotes",
            display_name=LABEL,
            category="guidekit/alignment",
            description="The likes and dislikes of Vote on Images, ready for training: chosen, balanced, paired within "
            "each prompt, a share of them held out to measure with. Says how many there are of each prompt, and warns "
            "when likes and dislikes have different prompts.",
            search_aliases=["votes", "dataset", "preference data", "training data", "pairs", "hold out"],
            inputs=[
                *filter_inputs(),
                io.Combo.Input(
                    "balance",
                    options=list(BALANCE),
                    default=BALANCE[0],
                    tooltip="Leaves out votes of the larger side until there are as many likes as dislikes, of all "
                    "or within each prompt. Trainers that draw both sides equally need neither.",
                ),
                io.Float.Input(
                    "hold_out",
                    default=0.1,
                    min=0.0,
                    max=0.9,
                    step=0.05,
                    round=0.001,
                    tooltip="The share of votes that is not trained on, to measure with: whole prompts where there are "
                    "enough of them.",
                ),
                random_seed_input("Which votes are held out and left out."),
                io.Vae.Input(
                    "vae", optional=True, tooltip="Encodes images that came without a latent, as imported ones do."
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="Encodes prompts that came as text only, and the empty prompt for caption dropout.",
                ),
                after_input(),
            ],
            outputs=[
                VotesType.Output(display_name="votes", tooltip="For Train Preference LoRA."),
                report_output("How many votes of which prompts, and warnings."),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        tag,
        model_name,
        lora_name,
        last_days,
        from_date,
        to_date,
        balance,
        hold_out,
        random_seed,
        vae=None,
        clip=None,
        after=None,
    ) -> io.NodeOutput:
        found = store().find(filter_from(tag, model_name, lora_name, last_days, from_date, to_date))
        votes, sentences = select(store(), found, Encoders(vae, clip), balance, hold_out, random_seed)
        return with_report(votes, report=tell(LABEL, "\n".join(sentences)))
