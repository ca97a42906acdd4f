"""Messages of nodes appear under the right node, in the tab they belong to, as long as they hold."""

import copy
import json
import time

import pytest
from safetensors.torch import load_file, save_file

from guidekit.demo.server import PACK

MARKUP = "<img src=x onerror='window.hacked = true'> [[safe|https://example.org]] **bold**"


def template(name: str, **widgets) -> dict:
    """That with the API twin `name`, without the Guidekit Report that it may have; with widget values changed by the
    type of node and their place: `KSampler={2: 40}`."""
    workflows = (json.loads(path.read_text("utf-8")) for path in (PACK / "workflows").glob("*.json"))
    found = next(each for each in workflows if each["extra"]["guidekit"]["api"] == f"{name}.json")
    found = without(found, "GuidekitReport", "PreviewAny")
    for node in found["nodes"]:
        for place, value in widgets.get(node["type"], {}).items():
            node["widgets_values"][place] = value
    return found


def without(workflow: dict, *types: str) -> dict:
    gone = {node["id"] for node in workflow["nodes"] if node["type"] in types}
    links = [link for link in workflow["links"] if not gone & {link[1], link[3]}]
    left = {link[0] for link in links}
    nodes = [node for node in workflow["nodes"] if node["id"] not in gone]
    for output in (output for node in nodes for output in node["outputs"]):
        output["links"] = [link for link in output["links"] if link in left]
    return {**workflow, "nodes": nodes, "links": links}


def adaptive(steps: int = 12, threshold: float = 0.9) -> dict:
    return template("adaptive_guidance", GuidekitAdaptiveGuidance={0: threshold}, KSampler={2: steps})


def with_report(workflow: dict, sampler_type: str = "KSampler") -> dict:
    """And a Guidekit Report behind the last sampler."""
    found = copy.deepcopy(workflow)
    sampler = [node for node in found["nodes"] if node["type"] == sampler_type][-1]
    link, node_id = found["last_link_id"] + 1, found["last_node_id"] + 1
    found["last_link_id"], found["last_node_id"] = link, node_id
    found["links"].append([link, sampler["id"], 0, node_id, 0, "LATENT"])
    sampler["outputs"][0]["links"].append(link)
    bottom = max(node["pos"][1] + node["size"][1] for node in found["nodes"])
    found["nodes"].append(
        {
            "id": node_id,
            "type": "GuidekitReport",
            "pos": [sampler["pos"][0], bottom + 80],
            "size": [300, 60],
            "flags": {},
            "order": 99,
            "mode": 0,
            "inputs": [{"name": "sampled", "type": "LATENT", "link": link}],
            "outputs": [
                {"name": "sampled", "type": "LATENT", "links": []},
                {"name": "report", "type": "STRING", "links": []},
            ],
            "properties": {"Node name for S&R": "GuidekitReport"},
            "widgets_values": [],
        }
    )
    return found


def test_text_stays_in_its_tab(frontend):
    """A user looks at another tab while a workflow runs, and comes back; and there it is after a reload."""
    frontend.load(adaptive(steps=60), "mine")
    frontend.load(template("frequency_guidance"), "another")
    frontend.tab("mine")
    node = frontend.node("GuidekitAdaptiveGuidance")
    frontend.queue()
    frontend.tab("another")
    frontend.finish()
    assert frontend.texts() == {}
    frontend.tab("mine")
    assert [*frontend.texts()] == [node]
    text = frontend.seen(node, "after a tab switch")
    assert text.startswith("crossed 0.9 (x0) in step ")
    assert "Adaptive guidance" not in text
    frontend.tab("another")
    assert frontend.texts() == {}
    frontend.tab("mine")
    time.sleep(2)  # for the frontend to keep what is open
    frontend.reload()
    frontend.tab("mine")
    assert frontend.page.until(f"({_TEXT_OF})('{node}')") == text
    assert frontend.seen(node, "after a reload") == text


def test_text_holds_as_long_as_the_result(frontend):
    """Cached reruns keep it; a copy of the workflow whose nodes are all cached has it; another run replaces it; a run
    in which the node has no message, or is gone, removes it."""
    frontend.load(with_report(template("apg", KSampler={2: 4, 3: 1.0})), "mine")  # cfg 1
    frontend.run()
    node, report = frontend.node("GuidekitAPG"), frontend.node("GuidekitReport")
    reason = "had no effect in this run: no negative prompt was evaluated: cfg is 1, or the guider has none."
    assert frontend.texts()[node].endswith("\n" + reason)  # after what the node said as it executed
    assert reason in frontend.seen(report, "a report")
    first = frontend.texts()
    frontend.run()
    assert frontend.texts() == first
    frontend.command("Comfy.DuplicateWorkflow")
    frontend.page.until("app.extensionManager.workflow.activeWorkflow.filename !== 'mine'")
    assert frontend.texts() == {}
    frontend.run()
    assert frontend.texts() == first
    assert frontend.seen(node, "in a copy, cached") == first[node]
    frontend.set("KSampler", cfg=6.0)
    frontend.run()
    assert frontend.texts()[node] == first[node].removesuffix("\n" + reason)
    assert reason not in frontend.texts()[report]
    frontend.tab("mine")
    assert frontend.texts() == first


def test_text_is_not_saved(frontend):
    frontend.load(adaptive(), "mine")
    before = frontend.page.run("app.graph.serialize().nodes.map((each) => each.widgets_values ?? null)")
    frontend.run()
    [text] = frontend.texts().values()
    saved, prompt = frontend.page.run(
        "app.graphToPrompt().then(({ workflow, output }) => [workflow, output].map((each) => JSON.stringify(each)))"
    )
    assert text not in saved
    assert "guidekit_told" not in saved + prompt
    assert [node.get("widgets_values") for node in json.loads(saved)["nodes"]] == before


@pytest.fixture(scope="module")
def titled(server) -> str:
    """The name of a LoRA with a title, which is there before a page is opened."""
    folder = server.models / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    tensors = load_file(PACK / "demo" / "weights" / "liked_unet.safetensors")
    save_file(tensors, folder / "titled.safetensors", {"modelspec.title": MARKUP})
    return "titled.safetensors"


def test_text_is_text(titled, frontend):
    """Whatever a file says about itself."""
    workflow = template("preference_lora")
    for node in workflow["nodes"]:
        if node["type"] == "GuidekitPreferenceLoraLoader":
            node["widgets_values"][0] = titled
    frontend.load(workflow, "mine")
    frontend.run()
    path, text = next((path, text) for path, text in frontend.texts().items() if "Title:" in text)
    assert "\u2039img src=x" in frontend.seen(path, "a file's own words")
    assert "**bold**" in text
    assert not frontend.page.run("!!window.hacked")


def test_several_samplers_are_named(frontend):
    """Also the same text where one of them is gone."""
    frontend.load(adaptive(), "mine")
    node = frontend.node("GuidekitAdaptiveGuidance")
    frontend.run()
    assert frontend.texts()[node].startswith("crossed")
    frontend.page.run(
        f"""(() => {{
          const sampler = app.graph.getNodeById({node}).getOutputNodes(0).find((each) => each.type === "KSampler")
          const copy = LiteGraph.createNode("KSampler")
          app.graph.add(copy)
          copy.title = "Second"
          const widget = (node, name) => node.widgets.find((each) => each.name === name)
          for (const {{ name, value }} of sampler.widgets) widget(copy, name).value = value
          widget(copy, "steps").value = 9
          for (const [slot, {{ link }}] of sampler.inputs.entries())
            if (link != null) sampler.getInputNode(slot).connect(sampler.getInputLink(slot).origin_slot, copy, slot)
          const decode = LiteGraph.createNode("VAEDecode")
          const save = LiteGraph.createNode("PreviewImage")
          app.graph.add(decode)
          app.graph.add(save)
          copy.connect(0, decode, 0)
          const vae = app.graph.nodes.find((each) => each.type === "GuidekitDemoModel")
          vae.connect(2, decode, 1)
          decode.connect(0, save, 0)
        }})()"""
    )
    frontend.run()
    lines = frontend.texts()[node].splitlines()
    assert len(lines) == 2
    assert all(") : " not in line and "): crossed 0.9" in line for line in lines), lines
    assert sum(line.startswith("Second (") and "of 9;" in line for line in lines) == 1
    frontend.seen(node, "two samplers")
    frontend.page.run("app.graph.remove(app.graph.nodes.find((each) => each.title === 'Second'))")
    frontend.run()
    assert frontend.texts()[node].startswith("crossed")


def test_inside_a_subgraph(frontend):
    frontend.load(adaptive(), "mine")
    node = frontend.node("GuidekitAdaptiveGuidance")
    frontend.page.run(f"app.canvas.selectItems([app.graph.getNodeById({node})])")
    frontend.command("Comfy.Graph.ConvertToSubgraph")
    [outer] = frontend.page.run("app.graph.nodes.filter((each) => each.subgraph).map((each) => each.id)")
    assert frontend.texts() == {}
    frontend.run()
    [path] = frontend.texts()
    assert path.split(":")[0] == str(outer)
    text = frontend.texts()[path]
    assert text.startswith("crossed 0.9")
    frontend.page.run(f"((node) => app.canvas.openSubgraph(node.subgraph, node))(app.graph.getNodeById({outer}))")
    time.sleep(1)
    assert frontend.seen(path, "inside a subgraph") == text


_TEXT_OF = """(id) => app.graph.getNodeById(Number(id))?.widgets
  ?.find((each) => each.name === "guidekit_told")?.element.textContent"""
