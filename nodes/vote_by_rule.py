"""Votes by a number or by yes and no, such as a scorer's, where nobody looks at the images."""

from comfy_api.latest import io

from .host.inputs import check_sampled, checked
from .host.run.messages import tell
from .host.run.outputs import report_output, with_report
from .host.votes.inputs import HIDDEN, shown_inputs
from .host.votes.opened import store
from .host.votes.rule import ABOVE, BELOW, labels_of, listed

LABEL = "Vote by Rule"


class VoteByRule(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        rule = [
            io.Float.Input(
                "score",
                min=-1e9,
                max=1e9,
                step=0.01,
                optional=True,
                force_input=True,
                tooltip="A number for each image, as scorers give them in a list.",
            ),
            io.Boolean.Input(
                "liked",
                optional=True,
                force_input=True,
                tooltip="Yes or no for each image, instead of a score.",
            ),
        ]
        first, *others = shown_inputs(
            "images to be voted on",
            io.Float.Input(
                "threshold",
                default=0.5,
                min=-1e9,
                max=1e9,
                step=0.01,
                tooltip="Of the score: on one side of it are the likes.",
            ),
            io.Combo.Input("likes", options=[ABOVE, BELOW], default=ABOVE, tooltip="Which side of the threshold."),
            io.Float.Input(
                "margin",
                default=0.0,
                min=0.0,
                max=1e9,
                step=0.01,
                tooltip="Scores no further than this from the threshold give no vote.",
                advanced=True,
            ),
        )
        return io.Schema(
            node_id="GuidekitVoteByRule",
            display_name=LABEL,
            category="guidekit/alignment",
            description="Likes and dislikes images by a score and a threshold, or by a list of yes and no, and keeps "
            "the votes as Vote on Images does. Works without a page.",
            search_aliases=["auto vote", "label by score", "threshold", "aesthetic score", "AI feedback", "reward"],
            inputs=[first, *others, *rule],
            outputs=[report_output("How many were liked and disliked.")],
            hidden=HIDDEN,
            is_output_node=True,
            is_input_list=True,
        )

    @classmethod
    @checked
    def execute(
        cls,
        images,
        threshold,
        likes,
        margin,
        tag,
        samples=None,
        model=None,
        positive=None,
        negative=None,
        score=None,
        liked=None,
    ) -> io.NodeOutput:
        shown = listed(images, samples, model, positive, negative, tag[0], cls.hidden)
        for each in shown:
            check_sampled(each.model, each.latent, each.positive, each.negative)
        offers = [offer for each in shown for offer in each.offers()]
        labels = labels_of(len(offers), score, liked, threshold[0], likes[0], margin[0])
        decided = [(offer, label) for offer, label in zip(offers, labels) if label]
        store().offer([offer.voted(label) for offer, label in decided])
        report = f"{labels.count(1)} liked, {labels.count(-1)} disliked, {labels.count(0)} without a vote."
        return with_report(report=tell(LABEL, "\n".join([report, *shown[0].lacks()])))
