"""Every node has a stable schema, and a text for everything that a user sees."""

import re

import pytest

from guidekit.tests.schema.catalogue import (
    ENGLISH,
    GOLDEN,
    REGENERATE,
    differences,
    english,
    inputs,
    object_info,
    read,
    schemas,
)

INFO = object_info()
CATEGORIES = ("guidance", "sampling", "attention", "inversion", "alignment", "inspect", "demo")
NUMBERS = ("INT", "FLOAT")
LISTS_FILES = ("file", "folder")  # of the user, and not known here

every_node = pytest.mark.parametrize("node_id", INFO)


def test_schemas_are_as_recorded():
    found = [*differences(read(GOLDEN), schemas())]
    assert not found, "\n".join([*found, REGENERATE])


def test_english_texts_are_as_recorded():
    found = [*differences(read(ENGLISH), english())]
    assert not found, "\n".join([*found, REGENERATE])


def test_differences_are_named():
    """The two tests above are only as good as this."""
    file = {"A": {"gone": 1, "same": {"x": [1]}, "changed": ["FLOAT", {"min": 0}], "longer": [1], "type": 0}}
    nodes = {
        "A": {"same": {"x": [1]}, "changed": ["FLOAT", {"min": 1}], "longer": [1, 2], "type": 0.0, "new": None},
        "B": {},
    }
    assert [*differences(file, nodes)] == [
        "A.gone: only in the file",
        "A.changed.1.min: the file says 0, the node 1",
        "A.longer: the file says [1], the node [1, 2]",
        "A.type: the file says 0, the node 0.0",
        "A.new: not in the file; the node says None",
        "B: not in the file; the node says {}",
    ]
    assert not [*differences(file, file)]


@every_node
def test_names(node_id):
    info = INFO[node_id]
    assert re.fullmatch(r"Guidekit[A-Z]\w*", node_id)
    assert info["name"] == node_id
    assert info["display_name"]
    assert info["display_name"] != node_id
    assert info["category"] in {f"guidekit/{category}" for category in CATEGORIES}
    assert info["search_aliases"]
    assert len(set(info["search_aliases"])) == len(info["search_aliases"])


@every_node
def test_everything_has_a_description(node_id):
    """Every input and output has an explanation."""
    info = INFO[node_id]
    texts = {"description": info["description"]}
    texts |= {f"input {name}": options.get("tooltip") for name, (_, options) in inputs(info).items()}
    texts |= {f"output {name}": tip for name, tip in zip(info["output_name"], info["output_tooltips"])}
    assert [where for where, text in texts.items() if not text or text[-1] not in ".)"] == []


@every_node
def test_texts_survive_the_frontend(node_id):
    """Interpolation, linked messages and plurals of vue-i18n, which every locale file goes through."""
    texts = [*_strings(read(ENGLISH)[node_id])]
    assert texts
    assert [text for text in texts if re.search(r"[{}@|]", text)] == []


def _strings(tree):
    if isinstance(tree, dict):
        for value in tree.values():
            yield from _strings(value)
    else:
        yield tree


@every_node
def test_defaults_are_allowed(node_id):
    """The host checks values against these limits, but not the defaults against them. What is no widget has none:
    converters of workflows would send it."""
    for name, (kind, options) in inputs(INFO[node_id]).items():
        if options.get("forceInput"):
            assert "default" not in options, name
        elif kind in NUMBERS:
            assert {"min", "max", "default", "step"} <= set(options), name
            assert options["min"] <= options["default"] <= options["max"], name
            assert options["step"] <= options["max"] - options["min"], name
        elif kind == "COMBO" and name not in LISTS_FILES:
            assert options["default"] in options["options"], name
            assert len(set(options["options"])) == len(options["options"]), name


@every_node
def test_ranges_come_last(node_id):
    """One pair of inputs, with one meaning, in one place on every node that can be limited: the last ones, but for
    sockets that may stay open."""
    names = [*INFO[node_id]["input"]["required"]]
    if {"start_percent", "end_percent"} & set(names):
        assert names[-2:] == ["start_percent", "end_percent"]
        for name, default in (("start_percent", 0.0), ("end_percent", 1.0)):
            _, options = inputs(INFO[node_id])[name]
            assert options["advanced"]
            assert (options["min"], options["max"], options["default"]) == (0, 1, default)


@every_node
def test_the_preset_comes_last_and_may_be_left_out(node_id):
    """Widgets are saved by position, and a client need not know of it."""
    if "preset" in (names := [*inputs(INFO[node_id])]):
        assert names[-1] == "preset"
        assert "preset" in INFO[node_id]["input"]["optional"]
