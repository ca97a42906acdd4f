"""The subgraphs: in the form in which the frontend loads them, served by the host, and usable in a workflow."""

import asyncio
import json

import pytest
from app.subgraph_manager import SubgraphManager
from comfy_cli.workflow_to_api import convert_ui_to_api

from guidekit.templates import BLUEPRINTS
from guidekit.templates.files import SUBGRAPHS
from guidekit.templates.subgraph import INPUT, OUTPUT
from guidekit.tests.schema.blueprint_use import TYPED, workflow_with
from guidekit.tests.schema.catalogue import inputs, read
from guidekit.tests.schema.test_loading import custom_nodes, install  # noqa: F401
from guidekit.tests.schema.test_workflows import validate

every_blueprint = pytest.mark.parametrize("blueprint", BLUEPRINTS, ids=lambda made: made.title)


def test_the_host_serves_them(custom_nodes):  # noqa: F811
    pack = install(custom_nodes / "some-other-name")
    found = asyncio.run(SubgraphManager().get_custom_node_subgraphs({}, force_reload=True))
    assert {entry["name"] for entry in found.values()} == {made.title for made in BLUEPRINTS}
    assert {entry["info"]["node_pack"] for entry in found.values()} == {"custom_nodes.some-other-name"}
    for key in found:
        entry = asyncio.run(SubgraphManager().get_subgraph(key, {}))
        assert json.loads(entry["data"]) == read(pack / "subgraphs" / f"{entry['name']}.json")


@every_blueprint
def test_is_one_node_whose_class_is_defined_beside_it(blueprint):
    content = read(SUBGRAPHS / f"{blueprint.title}.json")
    [node], [definition] = content["nodes"], content["definitions"]["subgraphs"]
    assert node["type"] == definition["id"]
    assert node["title"] == definition["name"] == blueprint.title
    assert definition["category"] == "Guidekit"
    assert definition["description"].endswith(".")
    assert content["extra"]["BlueprintSearchAliases"]
    sides = (("inputs", node["inputs"]), ("outputs", node["outputs"]))
    for side, shown in sides:
        assert [(i["name"], i["type"]) for i in definition[side]] == [(i["name"], i["type"]) for i in shown]
    widgets = [i["name"] for i in node["inputs"] if "widget" in i]
    assert node["properties"]["proxyWidgets"] == [["-1", name] for name in widgets]
    assert len(node["widgets_values"]) == len(widgets)
    sockets = ["widget" in i for i in node["inputs"]]
    assert sockets == sorted(sockets), "what is connected comes before what is typed"


@every_blueprint
def test_its_links_lead_from_node_to_node(blueprint, host_info):
    [definition] = read(SUBGRAPHS / f"{blueprint.title}.json")["definitions"]["subgraphs"]
    nodes = {node["id"]: node for node in definition["nodes"]}
    links = {link["id"]: link for link in definition["links"]}
    assert len(links) == len(definition["links"]) == definition["state"]["lastLinkId"]
    assert definition["state"]["lastNodeId"] == max(nodes)
    for number, link in links.items():
        if link["origin_id"] == INPUT:
            assert number in definition["inputs"][link["origin_slot"]]["linkIds"]
        else:
            output = nodes[link["origin_id"]]["outputs"][link["origin_slot"]]
            assert number in output["links"]
            assert output["type"] == link["type"]
        if link["target_id"] == OUTPUT:
            assert definition["outputs"][link["target_slot"]]["linkIds"] == [number]
        else:
            target = nodes[link["target_id"]]["inputs"][link["target_slot"]]
            assert target["link"] == number
            assert target["type"] == link["type"]
    for node in nodes.values():
        linked = {i["name"] for i in node["inputs"] if i["link"] is not None}
        required = host_info[node["type"]]["input"].get("required", {})
        sockets = {
            name for name, (kind, _) in inputs(host_info[node["type"]]).items() if kind.isupper() and name in required
        }
        widgets = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
        assert {name for name in sockets if required[name][0] not in widgets} <= linked


@every_blueprint
def test_works_in_a_workflow(blueprint, host, host_info):
    """Its nodes are in the prompt, with the values of the outer widgets."""
    prompt = convert_ui_to_api(workflow_with(blueprint, host_info), host_info)
    inside = {key: node for key, node in prompt.items() if ":" in key}
    [definition] = read(SUBGRAPHS / f"{blueprint.title}.json")["definitions"]["subgraphs"]
    assert sorted(n["class_type"] for n in inside.values()) == sorted(n["type"] for n in definition["nodes"])
    valid, error, outputs, node_errors = validate(prompt)
    assert (valid, node_errors) == (True, {}), error
    assert outputs
    names = {i["name"] for i in definition["inputs"]}
    values = [value for node in inside.values() for value in node["inputs"].values()]
    assert all(value in values for name, value in TYPED.items() if name in names)
