"""What nodes tell users is text, whatever it quotes."""

import logging

import pytest
import torch

from guidekit.nodes.host.tell import cut, plain, quoted, tell
from guidekit.tests.host import wrong


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a plain line, 50 % of 3 & 4", "a plain line, 50 % of 3 & 4"),
        ("<img src=x onerror=alert(1)>", "‹img src=x onerror=alert(1)›"),
        ("[[safe|https://example.org]]", "[ [safe|https://example.org]]"),
        ("[[[a|b]]]", "[ [ [a|b]]]"),
        ("__LNK0__", "_ _LNK0__"),
        ("a\r\nb\nc\u2028d\u0085e", "a b c d e"),
        ("\x1b[31mred\x07\0", "\\x1b[31mred\\x07\\x00"),
        ("tab\tnbsp\u00a0wide\u3000", "tab nbsp wide "),
        ("left\u202eright\u2066", "left\\u202eright\\u2066"),
        ("half \ud83d", "half \\ud83d"),
        ("日本語 ñ 👩\u200d🎨 می\u200cخواهم", "日本語 ñ 👩\u200d🎨 می\u200cخواهم"),
    ],
)
def test_plain(text, shown):
    assert plain(text) == shown
    assert "\n" not in plain(text)


@pytest.mark.parametrize("brackets", range(2, 9))
def test_no_link_is_left_however_many_brackets(brackets):
    assert "[[" not in plain("[" * brackets + "a|b]]")
    assert "__LNK" not in plain("_" * brackets + "LNK0__")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "None"),
        (0.5, "0.5"),
        (float("nan"), "nan"),
        ("it's", '"it\'s"'),
        ("a\nb", "'a\\nb'"),
        ("x" * 5000, "'" + "x" * 77 + "...'"),
        (10**5000, "a number of about 4983 digits"),
        (torch.ones(2, 3), "a tensor of shape (2, 3)"),
        ({"a": 1}, "a dict of 1 entries"),
        ([1] * 10**6, "a list of 1000000 entries"),
        (object(), "a object"),
    ],
    ids=lambda value: str(type(value)),
)
def test_quoted(value, shown):
    assert quoted(value) == shown


def test_cut():
    assert cut("abcdef", 6) == "abcdef"
    assert cut("abcdefg", 6) == "abc..."


def test_what_is_told_is_one_line_of_the_log(caplog):
    caplog.set_level(logging.INFO)
    tell(None, "First.\nSecond: \x1b[2J<b>.\n" + wrong.CONTROLS + "x" * 20_000)
    [record] = caplog.records
    assert record.getMessage().startswith("First. Second: \\x1b[2J‹b›. a\\x00b")
    assert "\n" not in record.getMessage()
    assert len(record.getMessage()) == 10_000
