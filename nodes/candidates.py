"""What an image could be taken for, from one prompt and a list of words."""

from comfy_api.latest import io

from .host.classifiers.labels import Candidates as Labelled
from .host.classifiers.labels import CandidatesType, Label, check_labels
from .host.inputs import checked

SLOT = "{slot}"
_MOST = 200_000  # characters to encode


class Candidates(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidekitCandidates",
            display_name="Candidates",
            category="guidekit/guidance",
            description="Makes prompts that differ in one word: the first is what the image shall be, the others "
            "what it could be taken for. For GFCG, and the first one's conditioning for the sampler.",
            search_aliases=["candidates", "classes", "labels", "prompt list", "GFCG", "slot"],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder of the model."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default=f"a photo of a {SLOT}",
                    tooltip="The prompt, with slot in curly brackets, as in the default, where the word stands.",
                ),
                io.String.Input(
                    "words",
                    multiline=True,
                    default="cat\ndog\nfox",
                    tooltip="A word in each line: what the image shall show first, then what it could be mistaken "
                    "for. A classifier with fixed classes has to know them.",
                ),
            ],
            outputs=[
                CandidatesType.Output(display_name="candidates", tooltip="For GFCG."),
                io.Conditioning.Output(display_name="positive", tooltip="The prompt with the first word."),
            ],
        )

    @classmethod
    @checked
    def execute(cls, clip, prompt, words) -> io.NodeOutput:
        if SLOT not in prompt:
            raise ValueError(f"The prompt has no {SLOT}. Write {SLOT} where the words shall stand.")
        lines = [line.strip() for line in words.splitlines() if line.strip()]
        if not lines:
            raise ValueError("There are no words. Give what the image shall show, and what it could be taken for.")
        slots = prompt.count(SLOT)
        characters = sum(len(prompt) + slots * (len(word) - len(SLOT)) for word in lines)
        if characters > _MOST:
            raise ValueError(
                f"The prompts of {len(lines)} words would have {characters} characters in all. They may have up to "
                f"{_MOST}: give a shorter prompt, or fewer words."
            )
        labels = tuple(Label(word, prompt.replace(SLOT, word)) for word in lines)
        check_labels(labels)
        encoded = tuple(clip.encode_from_tokens_scheduled(clip.tokenize(label.text)) for label in labels)
        candidates = Labelled(labels, encoded)
        candidates.check()
        return io.NodeOutput(candidates, encoded[0])
