"""Votes as a trainer takes them: tensors, prompts and labels; nothing has to be sampled, decoded or encoded again."""

from dataclasses import dataclass

from comfy_api.latest import io
from torch import Tensor

from .vote import Noise

VotesType = io.Custom("GUIDEKIT_VOTES")


@dataclass(frozen=True, eq=False)
class VoteRow:
    """`latent`: [1, C, ...], the `samples` of a LATENT (before the model's `process_latent_in`), finite, on the CPU.
    `positive`, `negative`: the host's CONDITIONING lists; rows of one prompt share one object. `label`: +1 or -1.
    `prompt`: the same for rows of one positive prompt. `pair`: rows of one prompt, one liked and one disliked, that
    share it are a pair; each row is in one pair at most. `policy`: `digest.policy_digest` of the MODEL that made the
    image, "" if unknown; `cfg`: the scale that it was made at, None if unknown. `noise`: what it was sampled from, if
    known.
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
    """`rows` to train on and `held_out` ones to measure with, in an order that depends only on the votes and the seed;
    no prompt's rows are in both where there are prompts enough. `empty`: the CONDITIONING of an empty prompt, for
    caption dropout; None if neither a CLIP was connected nor one of the votes' prompts is empty. `digest` names all of
    it: the same votes, labels, tensors and split have the same."""

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
        """Raises ValueError where there are fewer."""
        if self.liked < liked or self.disliked < disliked:
            raise ValueError(
                f"There are {self.liked} liked and {self.disliked} disliked images to train on, and at least {liked} "
                f"and {disliked} are wanted. Vote on more."
            )
