"""Templates, blueprints and the search, as a user meets them: in the real frontend."""

import json
import time

import pytest

pytest.importorskip("guidekit.tests.browser.frontend")

from guidekit.templates import BLUEPRINTS, TEMPLATES
from guidekit.templates.files import WORKFLOWS
from guidekit.tests.schema.test_search import FIRST, OURS, PHRASES

# Of the open workflow: nodes that are of no class, or marked as wrong; and those that are drawn larger than they lie.
WRONG = """app.graph.nodes.filter((node) => node.has_errors || !(node.type in LiteGraph.registered_node_types))
  .map((node) => node.type)"""
GROWN = """app.graph.nodes.filter((node) => {
  const [width, height] = node.computeSize?.() ?? [0, 0]
  return !node.flags.collapsed && (width > node.size[0] + 20 || height > node.size[1] + 20)
}).map((node) => node.type)"""
FOUND = "[...document.querySelectorAll('[role=option]')].map((each) => each.innerText.split('\\n')[0].trim())"
WORKFLOWS_BY_TITLE = {
    made.title: json.loads((WORKFLOWS / f"{made.title}.json").read_text("utf-8")) for made in TEMPLATES
}


@pytest.fixture
def named_files(server):
    """Empty ones, under the names of the models, so that none is missed."""
    nodes = [node for workflow in WORKFLOWS_BY_TITLE.values() for node in workflow["nodes"]]
    files = [file for node in nodes for file in node["properties"].get("models", ())]
    paths = {server.models / file["directory"] / file["name"] for file in files}
    for path in {*paths, server.models.parent / "input" / "example.png"}:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_every_template_opens(named_files, frontend, look):
    for title, workflow in WORKFLOWS_BY_TITLE.items():
        frontend.load(workflow, title)
        frontend.page.until(f"app.graph.nodes.length === {len(workflow['nodes'])}")
        time.sleep(0.5)
        assert frontend.page.run(WRONG) == [], title
        if look == "classic":
            assert frontend.page.run(GROWN) == [], title
        assert frontend.errors == [], title


def open_search(frontend) -> None:
    """By a double click beside the nodes."""
    frontend.page.run("app.graph.clear()")
    click = {"x": 700, "y": 700, "button": "left"}
    for _ in range(10):  # the page may still be busy with its start
        for count in (1, 2):
            for kind in ("mousePressed", "mouseReleased"):
                frontend.page("Input.dispatchMouseEvent", type=kind, clickCount=count, **click)
        time.sleep(1)
        if frontend.page.run("document.activeElement?.tagName === 'INPUT'"):
            return
    raise AssertionError("the search does not open")


def test_phrases_find_their_nodes(frontend, look):
    """Among the first three of this pack; blueprints are found by the beginning of their names."""
    if look == "vue":
        pytest.skip("the search is the same")
    open_search(frontend)
    names = {info["display_name"]: info["name"] for info in OURS} | {made.title: made.title for made in BLUEPRINTS}
    wanted = {**PHRASES, **{made.title.split(" (")[0]: {made.title} for made in BLUEPRINTS}}
    for phrase, nodes in wanted.items():
        frontend.page.run("document.activeElement.select()")
        frontend.page("Input.insertText", text=phrase)
        time.sleep(0.7)
        shown = frontend.page.run(FOUND)
        ours = [names[title] for title in shown if title in names]
        first = [name for name in ours if name.startswith("Guidekit") and " " not in name][:FIRST]
        assert nodes <= {*first, *ours[:FIRST]}, (phrase, shown[:8])
