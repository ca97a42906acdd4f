"""One more thing that an image could be taken for, with a conditioning of its own."""

from comfy_api.latest import io

from .host.classifiers.labels import Candidates, CandidatesType, Label
from .host.inputs import checked


class Candidate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidekitCandidate",
            display_name="Candidate",
            category="guidekit/guidance",
            description="Adds one candidate, a label and its conditioning, to a list: the first in the list is what "
            "the image shall be. For prompts that differ in more than a word.",
            search_aliases=["candidate", "class", "label", "GFCG"],
            inputs=[
                io.String.Input(
                    "label",
                    default="",
                    tooltip="A word that the classifier knows; for CLIP a description, such as: a photo of a cat.",
                ),
                io.Conditioning.Input("conditioning", tooltip="Its prompt."),
                CandidatesType.Input(
                    "candidates", optional=True, tooltip="The list so far; not connected, this begins one."
                ),
            ],
            outputs=[CandidatesType.Output(display_name="candidates", tooltip="For GFCG, or the next Candidate.")],
        )

    @classmethod
    @checked
    def execute(cls, label, conditioning, candidates=None) -> io.NodeOutput:
        before = candidates or Candidates((), ())
        word = label.strip()
        added = Candidates((*before.labels, Label(word, word)), (*before.conditionings, conditioning))
        return io.NodeOutput(added)
