"""Which of the tokens that a text encoder gives are those of the words of a text.

Relies on: `tokenize`, `encode_from_tokens`, `tokenizer` and `cond_stage_model` of the host's CLIP, whose parts have the
names of the token lists, or these behind "clip_" (comfy/sd1_clip.py:714); `start_token` and `end_token` of its
tokenizers; CLIP's two encoders side by side in the channels, T5 behind them in the sequence (SD3) or alone (Flux:
comfy/text_encoders/flux.py, sd3_clip.py); templates of language models, whose beginning is cut off
(comfy/text_encoders/qwen_image.py:54).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import comfy.model_management
import comfy.sd
import torch
from torch import Tensor

from ..run.messages import quoted

_SIDE_BY_SIDE = ("l", "g")  # CLIP's two encoders, whose tokens are the same


@dataclass(frozen=True)
class Stretch:
    """A part of what the encoder gives. `ids`: the tokens that it was given; `first`: the place of the first one in
    what it gives, below 0 where the beginning is cut off; `words`: the places of the words among `ids`, first and
    behind the last."""

    ids: tuple[int, ...]
    first: int
    words: tuple[int, int]

    @property
    def last_word(self) -> int:
        """Its place in what the encoder gives. Of an empty text, what comes before its end, or else the last token."""
        place = self.words[1] - 1
        return place + self.first if place >= 0 else len(self.ids) - 1 + self.first

    def aligned(self, other: "Stretch") -> list[tuple[int, int]] | None:
        """As in TIME: pairs of places, of each token here and of the one that it becomes in `other`; None where the
        words here are not in `other` in their order."""
        pairs, place = [(i, i) for i in range(self.words[0])], other.words[0]
        for i in range(*self.words):
            while place < other.words[1] and other.ids[place] != self.ids[i]:
                place += 1
            if place == other.words[1]:
                return None
            pairs.append((i, place))
            place += 1
        behind = range(len(self.ids) - self.words[1])
        pairs += [(self.words[1] + i, min(other.words[1] + i, len(other.ids) - 1)) for i in behind]
        return [(i + self.first, j + other.first) for i, j in pairs if i + self.first >= 0 and j + other.first >= 0]


@dataclass(frozen=True)
class Encoded:
    """`tokens` [L, C]; `pooled` [P], None where the encoder gives none; `stretches` of `tokens`."""

    text: str
    tokens: Tensor
    pooled: Tensor | None
    stretches: tuple[Stretch, ...]

    @property
    def empty(self) -> bool:
        return all(s.words[0] >= s.words[1] for s in self.stretches)

    @property
    def last_words(self) -> Tensor:
        """[stretches, C]"""
        return self.tokens[[s.last_word for s in self.stretches]]


class Texts:
    """What a CLIP makes of texts, each encoded once."""

    def __init__(self, clip: comfy.sd.CLIP) -> None:
        self.clip = clip
        self._known: dict[str, Encoded] = {}

    def __getitem__(self, text: str) -> Encoded:
        """Can be interrupted, as there may be thousands of them. Raises ValueError for weighted prompts, embeddings,
        more than one chunk of tokens, and encoders whose tokens cannot be told apart."""
        if text not in self._known:
            comfy.model_management.throw_exception_if_processing_interrupted()
            self._known[text] = self._encoded(text)
        return self._known[text]

    def _encoded(self, text: str) -> Encoded:
        tokens = self.clip.tokenize(text)
        ids = {name: _plain(batches, text) for name, batches in tokens.items() if self._part(name) is not None}
        output, pooled = self.clip.encode_from_tokens(tokens, return_pooled=True)
        stretches = tuple(self._stretches(ids, output.shape[1]))
        return Encoded(text, output[0].float().cpu(), None if pooled is None else pooled[0].float().cpu(), stretches)

    def _part(self, name: str) -> Any:
        """The encoder for the token list `name`; None where the file has none."""
        model = self.clip.cond_stage_model
        return getattr(model, f"clip_{name}", getattr(model, name, None))

    def _stretches(self, ids: dict[str, tuple[int, ...]], length: int) -> Iterable[Stretch]:
        names = [
            name for name in ids if name not in _SIDE_BY_SIDE or name == next(iter(set(_SIDE_BY_SIDE) & ids.keys()))
        ]
        whole = sum(len(ids[name]) for name in names)
        if len(names) > 1 and length != whole:  # Flux takes only the pooled output of its CLIP
            names = [name for name in names if len(ids[name]) == length]
            whole = length
        cut = whole - length
        if len(names) == 0 or cut < 0 or cut and len(names) > 1:
            raise ValueError(
                f"The text encoder {type(self.clip.cond_stage_model).__name__} gives {length} tokens for lists of "
                f"{', '.join(f'{len(some)} ({name})' for name, some in ids.items())}, and which are which is not "
                "known. Concept Edit works with the encoders of SD1, SD2, SDXL, SD3, Flux, Chroma, Qwen-Image, Lumina2 "
                "and Z-Image."
            )
        first = -cut
        for name in names:
            yield Stretch(ids[name], first, self._words(name, ids[name]))
            first += len(ids[name])

    def _words(self, name: str, ids: tuple[int, ...]) -> tuple[int, int]:
        """By the tokenizer's own end token; where it sets none, by what the template makes of no text at all."""
        tokenizers = self.clip.tokenizer
        tokenizer: Any = getattr(tokenizers, f"clip_{name}", getattr(tokenizers, name, None))
        end, start = tokenizer.end_token, int(tokenizer.start_token is not None)
        if end is not None:
            return start, ids.index(end, start)
        bare = self._bare[name]
        ahead = _alike(ids, bare)
        behind = min(_alike(ids[::-1], bare[::-1]), len(bare) - ahead, len(ids) - ahead)
        return ahead, len(ids) - behind

    @cached_property
    def _bare(self) -> dict[str, tuple[int, ...]]:
        return {name: _plain(batches, "") for name, batches in self.clip.tokenize("").items()}


def _alike(some: Sequence[int], others: Sequence[int]) -> int:
    """How many are the same from the beginning."""
    return next((i for i, (one, other) in enumerate(zip(some, others)) if one != other), min(len(some), len(others)))


def _plain(batches: list, text: str) -> tuple[int, ...]:
    """The tokens of one chunk of plain text."""
    if len(batches) != 1:
        raise ValueError(f"The text {quoted(text)} has more tokens than the encoder takes at once. Shorten it.")
    for token, weight, *_ in batches[0]:
        if isinstance(token, torch.Tensor | dict):
            raise ValueError(f"The text {quoted(text)} has an embedding. Concept Edit takes plain words.")
        if weight != 1:
            raise ValueError(
                f"The text {quoted(text)} has a weight in brackets, which Concept Edit does not know. Write plain "
                "words; a line's weight comes at its end, as * 2."
            )
    return tuple(int(token) for token, *_ in batches[0])
