"""Workflows of version 0.1.0 load, and mean what they meant.

frozen/ is a copy that never changes: nodes.json, what each node had (inputs in the order of their widgets, types,
limits, options, defaults; outputs), and workflows that were saved with it, by the frontend and in API form.
"""

import copy
from pathlib import Path

import pytest
from comfy_cli.workflow_to_api import convert_ui_to_api

from guidekit.tests.schema.catalogue import inputs, object_info, read
from guidekit.tests.schema.test_workflows import validate

FROZEN = Path(__file__).with_name("frozen")
NODES = read(FROZEN / "nodes.json")
NAMES = sorted(path.name.removesuffix(".api.json") for path in FROZEN.glob("*.api.json"))

every_workflow = pytest.mark.parametrize("name", NAMES)


def ui(name: str) -> dict:
    return read(FROZEN / f"{name}.json")


def api(name: str) -> dict:
    return read(FROZEN / f"{name}.api.json")


def broken(then: dict, now: dict) -> list[str]:
    """What a node of `now`, as /object_info has it, would misunderstand of a file that was made when it was `then`."""
    found, known = [], inputs(now)
    for place, given in enumerate(then["inputs"]):
        name, kind = given["name"], given["type"]
        if name not in known:
            found.append(f"{name} is gone")
            continue
        if list(known).index(name) != place:
            found.append(f"{name} was input {place}, and is {list(known).index(name)}")
        its_kind, options = known[name]
        its_options = options.get("options", its_kind if isinstance(its_kind, list) else [])
        if its_kind != kind:
            found.append(f"{name} was {kind}, and is {its_kind}")
        if options.get("default") != given.get("default"):
            found.append(f"{name} was {given.get('default')} by default, and is {options.get('default')}")
        if not set(given.get("options", ())) <= set(its_options):
            found.append(f"{name} has lost an option")
        if "min" in given and (options["min"] > given["min"] or options["max"] < given["max"]):
            found.append(f"{name} has narrower limits")
    was = {given["name"] for given in then["inputs"]}
    found += [f"{name} is new, and has to be given" for name in now["input"].get("required", {}) if name not in was]
    if now["output"][: len(then["outputs"])] != then["outputs"]:
        found.append("the outputs are others")
    return found


@pytest.mark.parametrize("node_id", NODES)
def test_nodes_understand_what_was_saved(node_id):
    """By name in API form, by the place of the widget in the frontend's."""
    assert not broken(NODES[node_id], object_info()[node_id])


@pytest.mark.parametrize(
    "change",
    [
        lambda node: node["input"]["required"].pop("scale"),
        lambda node: node["input"]["required"].update(extra=["FLOAT", {"default": 1.0}]),
        lambda node: node["input"].update(required={"extra": ["FLOAT", {}], **node["input"]["required"]}),
        lambda node: node["input"]["required"]["scale"][1].update(default=2.0),
        lambda node: node["input"]["required"]["scale"][1].update(max=5.0),
        lambda node: node["input"]["required"]["rescale"][1].update(options=["off", "full"]),
        lambda node: node["output"].reverse(),
    ],
)
def test_changes_that_break_files_are_found(change):
    node = object_info()["GuidekitPAG"]
    assert not broken(NODES["GuidekitPAG"], node)
    change(node)
    assert broken(NODES["GuidekitPAG"], node)


def test_an_input_at_the_end_breaks_nothing():
    node = object_info()["GuidekitPAG"]
    node["input"]["optional"]["extra"] = ["FLOAT", {"default": 1.0}]
    assert not broken(NODES["GuidekitPAG"], node)


def test_every_node_is_in_a_workflow():
    used = {node["class_type"] for name in NAMES for node in api(name).values()}
    assert set(NODES) - used == {"GuidekitCandidate"}


@every_workflow
def test_a_saved_file_means_what_it_meant(name, host_info):
    """Every value is at its input, whatever inputs have come since."""
    now = convert_ui_to_api(ui(name), host_info)
    then = api(name)
    assert now.keys() == then.keys()
    for node_id, node in then.items():
        assert now[node_id]["class_type"] == node["class_type"]
        assert {key: now[node_id]["inputs"].get(key) for key in node["inputs"]} == node["inputs"]
        since = {key: value for key, value in now[node_id]["inputs"].items() if key not in node["inputs"]}
        known = inputs(host_info[node["class_type"]])
        assert since == {key: known[key][1]["default"] for key in since}


@every_workflow
def test_files_without_the_last_widget_keep_the_others(name, host_info):
    """Such as files that were saved before nodes had a preset."""
    shorter, then = ui(name), api(name)
    for node in shorter["nodes"]:
        if "preset" in inputs(host_info.get(node["type"], {"input": {}})):
            assert node["widgets_values"].pop() in ("auto", "as typed")
    for node_id, node in convert_ui_to_api(shorter, host_info).items():
        expected = {key: value for key, value in then[node_id]["inputs"].items() if key != "preset"}
        assert {key: value for key, value in node["inputs"].items() if key != "preset"} == expected


@every_workflow
def test_the_host_takes_them(name, named_files):
    valid, error, _, node_errors = validate(copy.deepcopy(api(name)))
    assert (valid, node_errors) == (True, {}), error
