"""The demo models' tokenizer: one token per word; unknown words are left out and logged."""

import logging

from comfy.sd1_clip import SD1Tokenizer, SDTokenizer

from .captions import split_words
from .vocabulary import END, MAX_LENGTH, START, VOCABULARY

_NUMBERS = {word: i for i, word in enumerate(VOCABULARY)}


class WordTokenizer:
    """The part of a Hugging Face tokenizer that the host's `SDTokenizer` uses."""

    @classmethod
    def from_pretrained(cls, _path: str) -> "WordTokenizer":
        return cls()

    def get_vocab(self) -> dict[str, int]:
        return dict(_NUMBERS)

    def __call__(self, text: str) -> dict[str, list[int]]:
        words = split_words(text)
        unknown = sorted({w for w in words if w not in _NUMBERS})
        if unknown:
            logging.getLogger(__name__).warning(
                "The demo models do not know %s. They know: %s.", ", ".join(unknown), " ".join(VOCABULARY[3:])
            )
        return {"input_ids": [START, *(_NUMBERS[w] for w in words if w in _NUMBERS), END]}


class _WordSDTokenizer(SDTokenizer):
    def __init__(self, embedding_directory=None, tokenizer_data={}):  # noqa: B006
        super().__init__(
            max_length=MAX_LENGTH,
            pad_with_end=False,
            embedding_directory=embedding_directory,
            embedding_key="demo",
            tokenizer_class=WordTokenizer,
            tokenizer_data=tokenizer_data,
        )


class DemoTokenizer(SD1Tokenizer):
    """The host's tokenizer (weights in brackets, chunks, padding) over this vocabulary."""

    def __init__(self, embedding_directory=None, tokenizer_data={}):  # noqa: B006
        super().__init__(embedding_directory, tokenizer_data, clip_name="demo", tokenizer=_WordSDTokenizer)
