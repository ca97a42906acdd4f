"""Votes as a trainer takes them: latents, encoded prompts and labels."""

from dataclasses import dataclass

from comfy_api.latest import io
from torch import Tensor

from .vote import Noise

VotesType = io.Custom("GUIDEKIT_VOTES")


@dataclass(frozen=True, eq=False)
class VoteRow:
    """One vote. `latent`: [1, C, ...], the `samples` of a LATENT (before the model's `process_latent_in`), finite, on
    the CPU. `positive`, `negative`: CONDITIONING lists; rows of one prompt share one object. `label`: +1 or -1.
    `prompt`: a text that is the same for rows of one positive prompt. `pair`: a number that one liked and one disliked
    row of a prompt share; each row is in one pair at most. `policy`: `digest.policy_digest` of the MODEL that made the
    image, "" if unknown; `cfg`: the guidance scale that it was made with, None if unknown; `noise`: its initial noise,
    None if unknown.
    """

    id: str
    latent: Tensor
    positive: list
    negative: list | None
    text: str
    label: int
    prompt: str
    pair: int | None = None
    policy: str = ""
    cfg: float | None = None
    noise: Noise | None = None


@dataclass(frozen=True, eq=False)
class VoteSet:
    """`rows` to train on and `held_out` rows to measure with, in an order that depends only on the votes and the seed.
    If there are enough prompts, none has rows in both. `empty`: the CONDITIONING of an empty prompt, for caption
    dropout; None if no CLIP was connected and no prompt of the votes is empty. `digest`: equal for equal votes, labels,
    tensors and split."""

    rows: tuple[VoteRow, ...]
    held_out: tuple[VoteRow, ...]
    empty: list | None
    digest: str

    @property
    def liked(self) -> int:
        return sum(row.label > 0 for row in self.rows)

    @property
    def disliked(self) -> int:
        return sum(row.label < 0 for row in self.rows)

    def check(self, liked: int = 4, disliked: int = 4) -> None:
        """Raises ValueError if there are fewer likes or dislikes to train on."""
        if self.liked < liked or self.disliked < disliked:
            held = len(self.held_out)
            raise ValueError(
                f"There are {self.liked} liked and {self.disliked} disliked images to train on"
                f"{f', and {held} that are held out' if held else ''}. At least {liked} and {disliked} are needed: "
                f"vote on more images{', or set hold_out of Load Votes to 0' if held else ''}."
            )
