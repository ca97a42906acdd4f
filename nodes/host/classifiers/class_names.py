"""The names of a classifier's classes: given in the node, in its file, or in a file beside it."""

from collections.abc import Mapping
from pathlib import Path

from ....samplers.strict_json import read_json

LARGEST = 2**24  # bytes of a file
LONGEST = 1000  # characters of a name


def class_names(path: Path, metadata: Mapping[str, str], given: str | None) -> tuple[str, ...]:
    """The names of the classes, in order, from the first of these that exists: `given`, one name per line; `labels` in
    the metadata, likewise; beside the file `path`, a `.txt` with one name per line, or a `.json` with a list or a dict
    from numbers to names.

    Raises:
        ValueError: none exists, or the file is not of this form.
    """
    names = _found(path, metadata, given)
    if longest := next((name for name in names if len(name) > LONGEST), None):
        raise ValueError(
            f"A class of {path.name} has a name of {len(longest)} characters ({longest[:50]!r}...), where up to "
            f"{LONGEST} are read."
        )
    return names


def _found(path: Path, metadata: Mapping[str, str], given: str | None) -> tuple[str, ...]:
    for text in (given, metadata.get("labels")):
        if text:
            return _lines(text)
    if (beside := path.with_suffix(".txt")).is_file():
        return _lines(_text(beside))
    if (beside := path.with_suffix(".json")).is_file():
        return _of_json(beside)
    raise ValueError(
        f"{path.name} does not name its classes. Put {path.stem}.txt beside it, with a line for each class in order, "
        "or give the names in the node."
    )


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines())


def _of_json(path: Path) -> tuple[str, ...]:
    text = _text(path)
    try:
        found = read_json(text)
    except ValueError as error:
        raise ValueError(f"{path.name} is not JSON: {error}.") from error
    if isinstance(found, dict):
        found = [found.get(str(i)) for i in range(len(found))]
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise ValueError(f"{path.name} is not a list of names, and not a dict from numbers (0, 1, ...) to names.")
    return tuple(found)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read: {error.strerror or error}.") from error
    if len(content) > LARGEST:
        raise ValueError(f"{path.name} has more than the {LARGEST} bytes that are read.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path.name} is not in UTF-8 (byte {error.start} is {content[error.start]:#04x}). Save it in UTF-8."
        ) from error
