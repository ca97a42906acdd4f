"""JSON from other people's files: plain JSON is read, everything else is a ValueError."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guidekit.samplers.strict_json import is_number, read_json

_PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)


@settings(deadline=None)
@given(_PLAIN)
def test_plain_json_is_read(value):
    assert read_json(json.dumps(value)) == value


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("NaN", "it holds NaN"),
        ("[-Infinity]", "it holds -Infinity"),
        ('{"a": {"b": 1, "b": 1}}', "names something twice"),
        ("{", "line 1"),
        (b"\xff", "decode"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_other_json_is_refused(text, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_json(text)


def test_numbers():
    assert all(map(is_number, (0, -3, 2.5, 10**308, -1.7e308)))
    assert not any(map(is_number, (10**400, -(10**400), float("inf"), float("nan"), True, None, "1", [1])))
