"""The header of a safetensors file, read and checked before any weight: what a file holds is known in a moment, however
large it is, and whatever it is.

The format: 8 bytes, the length of the header, little endian; the header, JSON: a dict from names to dtype, shape and
the two offsets of the data, counted from the end of the header, and under __metadata__ a dict of strings; the data,
without gaps.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LARGEST = 32 * 2**20  # bytes of a header
MOST = 100_000  # tensors
_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
}


@dataclass(frozen=True)
class Entry:
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    tensors: dict[str, Entry]
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """In time and memory that do not depend on the size of the file.

    Raises:
        ValueError: a sentence about what it is instead.
    """
    name = path.name
    if path.is_dir():
        raise ValueError(f"{name} is a folder, not a safetensors file.")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > size - 8:
                if start[:1] == b"\x80" or start[:2] == b"PK":
                    raise ValueError(
                        f"{name} is a pickle (.ckpt, .pt, .bin), which can run code when it is loaded, and is not "
                        "read. Convert it to safetensors where you trust it."
                    )
                raise ValueError(
                    f"{name} has {size} bytes and wants {length} for its header alone: it is cut off, or not a "
                    "safetensors file. Get it again."
                )
            if length > LARGEST:
                raise ValueError(f"{name} has a header of {length} bytes; up to {LARGEST} are read.")
            text = file.read(length)
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error}.") from error
    try:
        return _parsed(text, size - 8 - length)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not a whole safetensors file: {error}. Get it again.") from error


def _parsed(text: bytes, room: int) -> Header:
    """`room`: bytes of data."""
    found = json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse)
    if not isinstance(found, dict):
        raise ValueError("its header is no dict")
    metadata = found.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are not strings")
    if len(found) > MOST:
        raise ValueError(f"it names {len(found)} tensors; up to {MOST} are read")
    tensors = {name: _entry(name, about) for name, about in found.items()}
    end = 0
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != end:
            raise ValueError(f"the data of {name!r} begin at {entry.begin}, where {end} bytes are taken")
        end = entry.end
    if end != room:
        raise ValueError(f"its header describes {end} bytes of data, and there are {room}")
    return Header(tensors, metadata)


def _entry(name: str, about: Any) -> Entry:
    if not isinstance(about, dict) or about.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name!r} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = about["dtype"], about["shape"], about["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise ValueError(f"{name!r} is of the unknown dtype {dtype!r}")
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise ValueError(f"{name!r} has the shape {shape!r} and the offsets {offsets!r}")
    begin, end = offsets
    if end - begin != math.prod(shape) * _BITS[dtype] // 8:
        raise ValueError(f"{name!r}, {dtype} {shape}, does not fit into its {end - begin} bytes")
    return Entry(dtype, tuple(shape), begin, end)


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("its header names something twice")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"its header holds {constant}")
