"""The blocks that a branch shares with cond: those before the first block in which it differs need not run again."""

from dataclasses import dataclass, field
from uuid import UUID

from torch import Tensor

from ..run import Run
from .families import Block

_PARTS = "the positive is evaluated in parts"
Streams = dict[str, Tensor]  # hidden states between blocks, [rows, ...]: "img" and, in joint blocks, "txt"


@dataclass
class Prefix:
    """The hidden states of the entries `wanted` of cond in one evaluation, after the blocks before `first`.

    `resumed`: {entry of a branch that resumes there: the entry of cond that it copies}, empty while cond itself is
    evaluated. `unusable`: why nothing can be shared, "" if it can.
    """

    first: Block
    wanted: set[UUID]
    kept: dict[UUID, dict[Block, Streams]] = field(default_factory=dict)
    resumed: dict[UUID, UUID] = field(default_factory=dict)
    unusable: str = ""
    _tokens: dict[UUID, dict[str, int]] = field(default_factory=dict)  # at the first block

    def keep(self, block: Block, uuids: list[UUID], streams: Streams) -> None:
        """Stores copies of the wanted rows of `streams`, the output of `block`, which the host changes in place."""
        for chunk, entry in enumerate(uuids):
            if entry in self.wanted:
                blocks = self.kept.setdefault(entry, {})
                if block in blocks:  # context windows evaluate an entry several times, and the parts look alike
                    self.unusable = _PARTS
                blocks[block] = {name: rows_of(t, chunk, len(uuids)).clone() for name, t in streams.items()}

    def states(self, uuids: list[UUID]) -> list[dict[Block, Streams]] | None:
        """The stored states for each chunk; None in a call that has to be computed from the start."""
        states = [self.kept[self.resumed[entry]] for entry in uuids if self.resumed.get(entry) in self.kept]
        return None if self.unusable or len(states) < len(uuids) else states

    def count_tokens(self, uuids: list[UUID], streams: Streams) -> None:
        """Called at the first block: checks that other nodes have not changed the length of the sequence between the
        call of cond and that of the branches."""
        tokens = {name: t.shape[1] for name, t in streams.items()}
        for entry in uuids if not self.unusable else ():
            if not self.resumed and entry in self._tokens:
                self.unusable = _PARTS
            elif self._tokens.setdefault(self.resumed.get(entry, entry), tokens) != tokens:
                self.unusable = "another node has changed the number of tokens between two network calls"


class Sharing:
    """State of one run. `prefix`: what is shared in the current evaluation, None while nothing is."""

    def __init__(self, run: Run):
        self.prefix: Prefix | None = None


def rows_of(tensor: Tensor, chunk: int, chunks: int) -> Tensor:
    """The rows of one chunk of a batched call, as a view."""
    rows = tensor.shape[0] // chunks
    return tensor[chunk * rows : (chunk + 1) * rows]
