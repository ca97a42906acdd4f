"""How the frontend's node search ranks, as far as it decides which nodes come first.

As of frontend 1.47.12 (NodeSearchService, FuseSearch and fuse.js): a node is found if every word of the query is,
with few errors and near its beginning, in its name, in its display name, or in one of its aliases. Those found are
sorted by how the query lies in the name and the display name, and, of those where it does not, by the score with which
it was found. Left out: how often the user has taken a node, which counts before that score.
"""

import re
from collections.abc import Iterator, Sequence

_THRESHOLD, _DISTANCE = 0.3, 100
_LEAST, _EPSILON = 0.001, 2.220446049250313e-16
_FIELDS = ("name", "display_name", "search_aliases")


def ranked(query: str, infos: Sequence[dict]) -> list[str]:
    """Names of the nodes that are found, best first; `infos` as /object_info has them."""
    found = [(score, info) for info in infos if (score := _found(query.lower(), info)) is not None]
    return [info["name"] for _, info in sorted(found, key=lambda pair: _place(query.lower(), *pair))]


def _found(query: str, info: dict) -> float | None:
    """fuse.js, with its extended search."""
    total, matched = 1.0, False
    for text in _texts(info):
        scores = [_word(word, text.lower()) for word in query.split()]
        if None not in scores:
            score = sum(scores) / len(scores)
            norm = round(len(text.split()) ** -0.5, 3)
            total *= (score or _EPSILON) ** norm
            matched = True
    return total if matched else None


def _texts(info: dict) -> Iterator[str]:
    for field in _FIELDS:
        value = info.get(field) or ()
        yield from [value] if isinstance(value, str) else value


def _word(word: str, text: str) -> float | None:
    """The least of errors / length + place / distance over the text; None above the threshold."""
    if word == text:
        return 0.0
    best = min((_errors(word, text[start:]) / len(word) + start / _DISTANCE for start in range(len(text))), default=1.0)
    return max(best, _LEAST) if best <= _THRESHOLD else None


def _errors(word: str, text: str) -> int:
    """Edit distance of the word to a beginning of the text: letters to change, to add or to leave out."""
    text = text[: 2 * len(word)]
    row = list(range(len(text) + 1))
    for i, letter in enumerate(word, 1):
        before, row = row, [i]
        for j, other in enumerate(text, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (letter != other)))
    return min(row)


def _place(query: str, score: float, info: dict) -> tuple[float, ...]:
    """FuseSearch.calcAuxScores."""
    return min(_lies(query, info[field], score) for field in ("name", "display_name"))


def _lies(query: str, text: str, score: float) -> tuple[float, ...]:
    parts = [part.lower() for part in re.split(r" |\b|(?<=[a-z])(?=[A-Z])|(?=[A-Z][a-z])", text)]
    words, text = query.split(" "), text.lower()
    kind, spread, long = 9, 0.0, 0
    if text == query:
        kind = 0
    elif text.startswith(query):
        kind, long = 1, len(text)
    elif query in parts or query in text:
        kind, long = 2 if query in parts else 3, len(text)
        spread = text.index(query) + 0.5 * len(text)
    elif all(word in parts for word in words):
        places = [parts.index(word) for word in words]
        kind, long = 4, len(text)
        spread = max(places) - min(places) + 0.5 * max(places) + 0.5 * len(text)
    elif all(word in text for word in words):
        first, last = (min(text.index(w) for w in words), max(text.index(w) + len(w) for w in words))
        kind, long = 5, len(text)
        spread = last - first + 0.5 * first + 0.5 * len(text)
    ratio = min(len(text), len(query)) / max(len(text), len(query))
    return kind, spread, long, score + 0.2 * (1 - ratio)
