"""Votes on images, taken in the page, for training: Diffusion-KTO (Li et al., NeurIPS 2024, arXiv 2404.04465) learns
from likes and dislikes of single images."""

import time

from comfy_api.latest import io

from .host.inputs import check_sampled, checked
from .host.run.messages import tell
from .host.run.outputs import report_output
from .host.votes.as_json import for_page
from .host.votes.inputs import HIDDEN, shown_inputs
from .host.votes.offers import Shown
from .host.votes.opened import store

LABEL = "Vote on Images"


class Vote(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidekitVote",
            display_name=LABEL,
            category="guidekit/alignment",
            description="Shows images to be liked or disliked, with the mouse or with the keys + and -, and keeps each "
            "with its latent, its prompts and how it was made. Load Votes gives them to a trainer; the tab Taste shows "
            "all of them.",
            search_aliases=[
                "vote",
                "thumbs up",
                "like",
                "dislike",
                "feedback",
                "rate images",
                "preference",
                "teach taste",
                "human feedback",
                "RLHF",
                "KTO",
            ],
            inputs=shown_inputs("images to be voted on"),
            outputs=[report_output("What was kept, and what was not connected.")],
            hidden=HIDDEN,
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **_) -> float:
        """Never the same: what it shows are the votes as they are by now."""
        return time.time()

    @classmethod
    @checked
    def execute(cls, images, tag, samples=None, model=None, positive=None, negative=None) -> io.NodeOutput:
        check_sampled(model, samples, positive, negative)
        shown = Shown(images, samples, model, positive, negative, tag, cls.hidden)
        votes = store().offer(shown.offers())
        known = sum(bool(vote.label) for vote in votes)
        sentences = [f"{len(votes)} images to vote on{f', {known} of them have a vote already' if known else ''}."]
        report = tell(LABEL, "\n".join([*sentences, *shown.lacks()]))
        return io.NodeOutput(report, ui={"guidekit_votes": list(map(for_page, votes)), "text": [report]})
