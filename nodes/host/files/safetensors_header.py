"""The header of a safetensors file, read before any weights, so that the contents of a large file are known at once.

The safetensors library reads and checks it; this adds error messages and the checks that the library does not make.
"""

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ....samplers.strict_json import read_json

MOST = 100_000  # tensors
_LARGEST = 100_000_000  # bytes; the library reads no larger header


@dataclass(frozen=True)
class Entry:
    """A tensor in a header. `dtype`: in the library's spelling, such as BF16."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """The tensors of a file by name, and its metadata."""

    tensors: dict[str, Entry]
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """The tensors and metadata of a file, in time and memory that do not depend on its size.

    Raises:
        ValueError: it is not a whole safetensors file; the message says what it is.
    """
    name = path.name
    try:
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            text = file.read(min(length, _LARGEST))
        if length > len(text) and (start[:1] == b"\x80" or start[:2] == b"PK"):
            raise ValueError(
                f"{name} is a pickle (.ckpt, .pt, .bin), which can run code when it is loaded, and is not read. "
                "Convert it to safetensors where you trust it."
            )
        with safe_open(path, framework="pt") as file:
            names, metadata = file.keys(), file.metadata() or {}
            if len(names) > MOST:
                raise ValueError(f"{name} names {len(names)} tensors; up to {MOST} are read.")
            slices = {key: file.get_slice(key) for key in names}
            tensors = {key: Entry(each.get_dtype(), tuple(each.get_shape())) for key, each in slices.items()}
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror or error}.") from error
    except SafetensorError as error:
        raise ValueError(f"{name} is not a whole safetensors file: {str(error)[:300]}. Get it again.") from error
    # Of two entries with one name the library uses the last. The header is parsed again only where it seems to have
    # more entries than names.
    if text.count(b'"data_offsets"') != len(tensors):
        try:
            read_json(text)
        except ValueError as error:
            raise ValueError(f"{name} is not a whole safetensors file: in its header {error}. Get it again.") from error
    return Header(tensors, metadata)
