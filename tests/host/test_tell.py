"""Messages to users are plain text, whatever they quote."""

import logging

import folder_paths
import pytest
import torch
from safetensors.torch import load_file, save_file

from guidekit.benchmarks._nodes import run_node, run_node_all
from guidekit.demo.world.adapters import adapter_file
from guidekit.demo.world.models import load
from guidekit.nodes.gfcg import GFCG
from guidekit.nodes.host.classifiers.labels import Candidates
from guidekit.nodes.host.run.messages import cut, plain, quoted, tell
from guidekit.nodes.preference_lora_loader import PreferenceLoraLoader
from guidekit.tests.host import guides, tiny, wrong


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
    tell("A node", "First.\nSecond: \x1b[2J<b>.\n" + wrong.CONTROLS + "x" * 20_000)
    [record] = caplog.records
    assert record.getMessage().startswith("A node: First. Second: \\x1b[2J‹b›. a\\x00b")
    assert "\n" not in record.getMessage()
    assert len(record.getMessage()) == len("A node: ") + 10_000


def test_a_title_in_a_file_is_text(monkeypatch, tmp_path, caplog):
    """In the report too, and on one line."""
    caplog.set_level(logging.INFO)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    title = f"{wrong.MARKUP}\n{wrong.CONTROLS}\nLicence: public domain." + "x" * 10_000
    save_file(load_file(adapter_file("unet", "liked")), tmp_path / "a.safetensors", {"modelspec.title": title})
    _, report = run_node_all(PreferenceLoraLoader, model=load("unet")[0], file="a.safetensors")
    for text in (report, caplog.records[-1].getMessage()):
        assert "Title: \u2039img src=x onerror=alert(1)\u203a [ [safe|" in text
        assert "<" not in text
        assert "[[" not in text
    lines = report.split("\n")
    assert all(line.isprintable() and len(line) <= 500 for line in lines)
    assert "Licence: the file declares none." in lines


def test_a_label_is_text(caplog):
    caplog.set_level(logging.INFO)
    family, label = "unet", wrong.MARKUP + "x" * 10_000
    prompts = guides.candidates(family).conditionings[:2]
    found = Candidates(guides.labels("cat", label), prompts)
    classifier = guides.always(0.2, 0.8)
    tiny.sample(run_node(GFCG, model=tiny.model(family), classifier=classifier, candidates=found), family)
    [told] = [r.getMessage() for r in caplog.records if "led away from" in r.getMessage()]
    assert "led away from \u2039img src=x onerror=alert(1)\u203a [ [safe|" in told
    assert len(told) < 300
