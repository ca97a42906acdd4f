"""Votes from folders."""

from comfy_api.latest import io

from .host.inputs import checked
from .host.run.messages import tell
from .host.run.outputs import report_output, with_report
from .host.votes.imports import folders, import_votes
from .host.votes.opened import store

LABEL = "Import Votes"


class ImportVotes(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidekitImportVotes",
            display_name=LABEL,
            category="guidekit/alignment",
            description="Takes votes from a folder in input/: images in liked/ and disliked/, with captions in .txt "
            "files beside them or in ComfyUI's own metadata, or pairs.csv (prompt, chosen, rejected), or what Export "
            "Votes has written. Images that are known get the folder's vote.",
            search_aliases=["import votes", "preference dataset", "pairs csv", "folder of images"],
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=list(folders()),
                    tooltip="A folder in input/ or output/guidekit/ with liked, disliked, pairs.csv or votes.jsonl.",
                ),
                io.String.Input("tag", default="", tooltip="A word to find them by again, if wanted."),
            ],
            outputs=[report_output("What was taken, and what was not.")],
            is_output_node=True,
            not_idempotent=True,
        )

    @classmethod
    @checked
    def execute(cls, folder, tag) -> io.NodeOutput:
        return with_report(report=tell(LABEL, "\n".join(import_votes(store(), folder, tag))))
