"""Votes as folders."""

from comfy_api.latest import io

from .host.inputs import checked
from .host.run.messages import tell
from .host.run.outputs import report_output, with_report
from .host.votes.export import export
from .host.votes.inputs import ChoosesVotes, after_input, filter_from, filter_inputs
from .host.votes.opened import store

LABEL = "Export Votes"


class ExportVotes(ChoosesVotes):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidekitExportVotes",
            display_name=LABEL,
            category="guidekit/alignment",
            description="Writes votes into a new folder in output/guidekit, for other trainers: liked/ and disliked/ "
            "with captions, pairs.csv (prompt, chosen, rejected) and votes.jsonl with all that is known of each image.",
            search_aliases=["export votes", "preference dataset", "pairs csv", "jsonl", "DPO dataset", "backup votes"],
            inputs=[
                io.String.Input(
                    "name",
                    default="votes",
                    tooltip="Of the folder in output/guidekit; a number is added where there is one.",
                ),
                *filter_inputs(),
                after_input(),
            ],
            outputs=[report_output("What was written, and where.")],
            is_output_node=True,
        )

    @classmethod
    @checked
    def execute(cls, name, tag, model_name, lora_name, last_days, from_date, to_date, after=None) -> io.NodeOutput:
        wanted = filter_from(tag, model_name, lora_name, last_days, from_date, to_date)
        return with_report(report=tell(LABEL, export(store(), wanted, name)))
