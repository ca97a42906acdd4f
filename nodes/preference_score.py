"""The implicit reward of images under a tuned model (Diffusion-DPO: Wallace et al., CVPR 2024, arXiv 2311.12908)."""

import torch
from comfy_api.latest import io

from .host.inputs import check_prompt_for, checked, fit_latent, fit_votes
from .host.run.messages import tell
from .host.run.outputs import report_output, with_report
from .host.training.score import LEVELS, accuracy, scores
from .host.votes.vote_set import VoteRow, VotesType

LABEL = "Preference Score"


class PreferenceScore(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidekitPreferenceScore",
            display_name=LABEL,
            category="guidekit/alignment",
            description="How much better a model tuned to a taste predicts images than the model before: above 0 is "
            "liked. Ranks a batch of images, or measures on how many votes a LoRA agrees with you.",
            search_aliases=[
                "rank images",
                "best of",
                "reward",
                "taste score",
                "aesthetic score",
                "implicit reward",
                "rate",
            ],
            inputs=[
                io.Model.Input("model", tooltip="Without the LoRA."),
                io.Model.Input("tuned", tooltip="With it."),
                io.Int.Input(
                    "levels",
                    default=LEVELS,
                    min=1,
                    max=64,
                    step=1,
                    tooltip="Noise levels at which images are compared; two evaluations each for every image.",
                ),
                io.Int.Input(
                    "images_at_once",
                    default=4,
                    min=1,
                    max=512,
                    step=1,
                    tooltip="How many go through the network together.",
                    advanced=True,
                ),
                io.Latent.Input("latent", optional=True, tooltip="Images to be scored; with positive."),
                io.Conditioning.Input("positive", optional=True, tooltip="Their prompt."),
                VotesType.Input(
                    "votes",
                    optional=True,
                    tooltip="Instead: the votes that Load Votes holds out; all, if it holds out none.",
                ),
            ],
            outputs=[
                io.Float.Output(display_name="scores", tooltip="One for each image.", is_output_list=True),
                io.Int.Output(
                    display_name="order", tooltip="Places of the images, the best first, from 0.", is_output_list=True
                ),
                io.Float.Output(
                    display_name="accuracy",
                    tooltip="Of votes: the share of pairs of a like and a dislike in the right order; else 0.5.",
                ),
                report_output("The scores, and how many votes agree."),
            ],
        )

    @classmethod
    @checked
    def execute(cls, model, tuned, levels, images_at_once, latent=None, positive=None, votes=None) -> io.NodeOutput:
        if type(tuned.model) is not type(model.model):
            raise ValueError(
                f"model is {type(model.model).__name__}, and tuned {type(tuned.model).__name__}. Connect one model, "
                "without its LoRA and with it."
            )
        rows = fit_votes(tuned, fit_votes(model, _rows(model, latent, positive, votes)))
        found = scores(model, tuned, rows, images_at_once, levels)
        order = found.argsort(descending=True, stable=True).tolist()
        right, sentences = 0.5, [f"Scores from {found.min():+.4g} to {found.max():+.4g}; best first: {_places(order)}."]
        if votes is not None:
            liked = torch.tensor([row.label > 0 for row in rows])
            right = accuracy(found, liked)
            if right != right:
                raise ValueError("The votes are all likes or all dislikes, so that none can be told from the other.")
            sentences.insert(
                0, f"Of {len(rows)} votes, {right:.1%} of the pairs of a like and a dislike are told apart."
            )
        return with_report(found.tolist(), order, right, report=tell(LABEL, "\n".join(sentences)))


def _rows(model, latent, positive, votes) -> list[VoteRow]:
    if (votes is None) == (latent is None) or (latent is None) != (positive is None):
        given = [
            name for name, value in (("latent", latent), ("positive", positive), ("votes", votes)) if value is not None
        ]
        raise ValueError(
            f"Connected are {', '.join(given) or 'no images'}. Connect latent and positive, or votes alone."
        )
    if votes is not None:
        return list(votes.held_out or votes.rows)
    check_prompt_for(model, positive, "positive")
    samples = fit_latent(model, latent["samples"], "latent").cpu()
    return [VoteRow(str(i), samples[i : i + 1], positive, None, "", 1, "") for i in range(len(samples))]


def _places(order: list[int], most: int = 20) -> str:
    return ", ".join(map(str, order[:most])) + (" ..." if len(order) > most else "")
