"""STRING and COMBO."""

from typing import Any

from comfy_api.latest import io

from ..run.messages import quoted

_LONGEST, _LONGEST_LINE = 1_000_000, 10_000  # characters; a multiline text may be ImageNet-21k's labels


def text(name: str, value: Any, wanted: io.String.Input) -> str:
    """A STRING of limited length. Raises ValueError for anything else."""
    longest = _LONGEST if wanted.multiline else _LONGEST_LINE
    if not isinstance(value, str):
        raise ValueError(f"{name} is {quoted(value)}. It is a text.")
    if len(value) > longest:
        raise ValueError(f"{name} has {len(value)} characters. It may have up to {longest}.")
    return _whole(name, value)


def option(name: str, value: Any, wanted: io.Combo.Input) -> str:
    """A COMBO: one of the options, or any name of a file. Raises ValueError for anything else."""
    if wanted.default is None:  # a list of files, which may have changed: the node itself checks the name
        if not isinstance(value, str):
            raise ValueError(f"{name} is {quoted(value)}. It is the name of a file.")
        return _whole(name, value)
    if not isinstance(value, str) or value not in wanted.options:
        raise ValueError(f"{name} is {quoted(value)}. It is one of {', '.join(wanted.options)}.")
    return value


def _whole(name: str, value: str) -> str:
    """Refuses lone surrogates, which JSON can contain but files, logs and tokenizers cannot."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} has half a character (a lone surrogate) at place {error.start}.") from None
    return value
